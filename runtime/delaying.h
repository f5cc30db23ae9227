// Adaptors that wait a random time before each operation, so that orders of events that are rare become
// common. The delays follow from the seed; give each rank another one.
#pragma once

#include <chrono>
#include <memory>
#include <random>

#include "runtime/forwarding_device.h"
#include "runtime/interposed_communicator.h"

namespace shardplan {

// Half of the delays are none; the others are uniform up to `longest`. One rank's.
class RandomDelay {
 public:
  RandomDelay(std::uint64_t seed, std::chrono::microseconds longest) : generator_(seed), longest_(longest) {}
  void wait();

 private:
  std::mt19937_64 generator_;
  std::chrono::microseconds longest_;
};

// Delays copies, zeroing, waits and kernels of its streams; the delay must outlive them.
class DelayingDevice final : public ForwardingDevice {
 public:
  DelayingDevice(Device& inner, RandomDelay& delay) : ForwardingDevice(inner), delay_(delay) {}
  std::unique_ptr<Stream> make_stream() override;

 private:
  RandomDelay& delay_;
};

// Delays every call, also of what is split from it; the delay must outlive all of them.
class DelayingCommunicator final : public InterposedCommunicator {
 public:
  DelayingCommunicator(std::unique_ptr<Communicator> inner, RandomDelay& delay)
      : InterposedCommunicator(std::move(inner)), delay_(delay) {}

 protected:
  void before(const char* operation) override;
  std::unique_ptr<Communicator> wrap(std::unique_ptr<Communicator> inner) const override;

 private:
  RandomDelay& delay_;
};

}  // namespace shardplan
