// One suite for every Device: what runtime/device.h promises. A test program compiles device_conformance.cpp and defines
// devices_under_test().
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runtime/device.h"

namespace shardplan::test {

struct DeviceUnderTest {
  std::string name;
  // Makes the device, calls the body with it, and returns when that has ended.
  std::function<void(const std::function<void(Device&)>&)> run;
  // Whether copies from and to memory of the tier `host` have bytes that the host can read and write.
  bool holds_values = true;
  // Whether other processes can map its memory (Memory::shared_handle).
  bool shareable = false;
};

std::vector<DeviceUnderTest> devices_under_test();

}  // namespace shardplan::test
