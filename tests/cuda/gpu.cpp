#include "tests/cuda/gpu.h"

#include "base/error.h"

namespace shardplan::test {

void GpuTest::SetUp() {
  try {
    cuda_ = &load_cuda_backend(SHARDPLAN_CUDA_MODULE);
    gpus_ = cuda_->gpus();
  } catch (const ConfigError& error) {
    GTEST_SKIP() << error.what();
  }
  device_ = cuda_->make_device(0);
  stream_ = device_->make_stream();
}

OnDeviceArrays::OnDeviceArrays(Device& device, Stream& stream, const std::vector<RandomArray*>& arrays,
                               MemoryTier tier) {
  for (RandomArray* array : arrays) {
    const std::span<std::byte> bytes = array->buffer().subspan(array->first_byte());
    const std::size_t place = reinterpret_cast<std::uintptr_t>(bytes.data()) % 4096;
    auto memory = device.allocate({.tier = tier, .bytes = Bytes{place + bytes.size()}});
    std::byte* first = memory->data() + place;
    stream.copy(first, bytes.data(), Bytes{bytes.size()});
    copies_.push_back({array, std::move(memory), first});
  }
}

std::byte* OnDeviceArrays::at(const void* host) const {
  for (const Copy& copy : copies_) {
    if (host == copy.array->buffer().data() + copy.array->first_byte()) return copy.first;
  }
  SHARDPLAN_CHECK(host == nullptr, "no array begins there");
  return nullptr;
}

void OnDeviceArrays::download(Stream& stream) {
  for (const Copy& copy : copies_) {
    const std::span<std::byte> bytes = copy.array->buffer().subspan(copy.array->first_byte());
    stream.copy(bytes.data(), copy.first, Bytes{bytes.size()});
  }
  stream.synchronize();
}

}  // namespace shardplan::test
