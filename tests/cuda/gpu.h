// Tests that need a GPU: they skip, with the module's reason, where there is none.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "shard/cuda_backend.h"
#include "tests/cuda/random_arrays.h"

namespace shardplan::test {

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override;

  const CudaBackend* cuda_ = nullptr;
  std::vector<CudaGpu> gpus_;
  std::unique_ptr<Device> device_;  // the first one
  std::unique_ptr<Stream> stream_;
};

// Copies of arrays in a device's memory, at the same place relative to a page.
class OnDeviceArrays {
 public:
  OnDeviceArrays(Device& device, Stream& stream, const std::vector<RandomArray*>& arrays,
                 MemoryTier tier = MemoryTier::device);

  // Where the copy of a host's byte lies; null for null.
  std::byte* at(const void* host) const;
  template <typename T>
  std::span<T> at(std::span<T> host) const {
    return {reinterpret_cast<T*>(at(host.data())), host.size()};
  }
  Elements at(const Elements& host) const { return {host.dtype, at(host.data), host.elements}; }
  ConstElements at(const ConstElements& host) const { return {host.dtype, at(host.data), host.elements}; }
  // Back to where they came from.
  void download(Stream& stream);

 private:
  struct Copy {
    RandomArray* array;
    std::unique_ptr<Memory> memory;
    std::byte* first;
  };
  std::vector<Copy> copies_;
};

}  // namespace shardplan::test
