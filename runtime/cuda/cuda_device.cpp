#include "runtime/cuda/cuda_device.h"

#include <fmt/format.h>

#include <nvtx3/nvToolsExt.h>

#include <array>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "runtime/cuda/error.h"
#include "runtime/host_memory.h"

namespace shardplan::cuda {
namespace {

constexpr Bytes kPage = 4_KiB;  // what Memory::data() promises to lie on

// What was allocated by one of CUDA's two allocators, and is given back to it. Begins on a page.
class Allocation {
 public:
  Allocation(int device, MemoryTier tier, Bytes bytes) : device_(device), tier_(tier) {
    const OnDevice on(device);
    const std::uint64_t whole = (bytes + kPage).count();  // both allocators promise less than a page's alignment
    const cudaError_t result =
        tier == MemoryTier::device ? cudaMalloc(&base_, whole) : cudaHostAlloc(&base_, whole, cudaHostAllocPortable);
    if (result == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it has been heard
      throw OutOfMemory(std::string(shardplan::name(tier)), bytes, available(tier));
    }
    check(result, tier == MemoryTier::device ? "cudaMalloc" : "cudaHostAlloc");
  }
  ~Allocation() {
    if (base_ == nullptr) return;
    // A destructor cannot throw; a device that has failed says so at the next call.
    if (tier_ == MemoryTier::device) {
      cudaFree(base_);
    } else {
      cudaFreeHost(base_);
    }
  }
  Allocation(Allocation&& other) noexcept
      : device_(other.device_), tier_(other.tier_), base_(std::exchange(other.base_, nullptr)) {}
  Allocation& operator=(Allocation&&) = delete;

  std::byte* data() const {
    const auto address = reinterpret_cast<std::uintptr_t>(base_);
    return static_cast<std::byte*>(base_) + (round_up(address, kPage.count()) - address);
  }
  void zero(Bytes bytes) const {
    if (tier_ != MemoryTier::device) {
      std::memset(data(), 0, bytes.count());
      return;
    }
    const OnDevice on(device_);
    check(cudaMemset(data(), 0, bytes.count()), "cudaMemset");
    // Streams of ours do not wait for the default stream, where that went.
    check(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
  }

 private:
  static Bytes available(MemoryTier tier) {
    if (tier != MemoryTier::device) return available_host_memory();
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return Bytes{free};
  }

  int device_;
  MemoryTier tier_;
  void* base_ = nullptr;
};

class CudaMemory final : public Memory {
 public:
  CudaMemory(Allocation allocation, const MemoryRequest& request)
      : Memory(allocation.data() + request.shift.count(), request), allocation_(std::move(allocation)) {}
  void handed_out(std::uint64_t, Bytes, std::string_view) override {}
  void given_back(std::uint64_t, Bytes) override {}

 private:
  Allocation allocation_;
};

class OrdinaryMemory final : public Memory {
 public:
  OrdinaryMemory(HostMapping mapping, const MemoryRequest& request)
      : Memory(mapping.data() + request.shift.count(), request), mapping_(std::move(mapping)) {}
  void handed_out(std::uint64_t, Bytes, std::string_view) override {}
  void given_back(std::uint64_t, Bytes) override {}

 private:
  HostMapping mapping_;
};

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

CudaEvent& cuda_event(Event& event) {
  auto* const found = dynamic_cast<CudaEvent*>(&event);
  SHARDPLAN_CHECK(found != nullptr, "an event of another device on a CUDA stream");
  return *found;
}

}  // namespace

int device_count() {
  int count = 0;  // left as it is without a driver
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  int driver = 0;
  if (result == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess) {
    if (driver == 0) {
      throw ConfigError(
          "CUDA", "", "this machine has no NVIDIA driver: libcuda.so.1 cannot be loaded (cudaErrorInsufficientDriver)");
    }
    throw ConfigError("CUDA", "",
                      fmt::format("the driver knows CUDA {}, and CUDA {} is needed: update the NVIDIA driver",
                                  version_text(driver), version_text(CUDART_VERSION)));
  }
  if (result == cudaSuccess || result == cudaErrorNoDevice) {
    throw ConfigError("CUDA", "", "the NVIDIA driver shows no GPU (cudaErrorNoDevice)");
  }
  throw ConfigError("CUDA", "",
                    fmt::format("cudaGetDeviceCount: {} ({})", cudaGetErrorString(result), cudaGetErrorName(result)));
}

CudaEvent::CudaEvent(int device) : device_(device) {
  const OnDevice on(device_);
  check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
}

CudaEvent::~CudaEvent() {
  cudaEventDestroy(event_);
}

bool CudaEvent::reached() const {
  const cudaError_t result = cudaEventQuery(event_);
  if (result == cudaErrorNotReady) return false;
  check(result, "cudaEventQuery");
  return true;
}

void CudaEvent::wait() {
  check(cudaEventSynchronize(event_), "cudaEventSynchronize");
}

CudaStream::CudaStream(int device) : device_(device) {
  const OnDevice on(device_);
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  const cudaError_t result = cudaHostAlloc(reinterpret_cast<void**>(&result_), sizeof(double), cudaHostAllocPortable);
  if (result != cudaSuccess) cudaStreamDestroy(stream_);
  check(result, "cudaHostAlloc");
}

// Work that is still queued is finished by the device; its result must not be written to memory that is gone.
CudaStream::~CudaStream() {
  end_range();
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
  cudaFreeHost(result_);
}

void CudaStream::copy(std::byte* to, const std::byte* from, Bytes bytes) {
  end_range();
  if (bytes == Bytes{}) return;
  const OnDevice on(device_);
  check(cudaMemcpyAsync(to, from, bytes.count(), cudaMemcpyDefault, stream_), "cudaMemcpyAsync");
}

void CudaStream::zero(std::byte* at, Bytes bytes) {
  end_range();
  if (bytes == Bytes{}) return;
  const OnDevice on(device_);
  check(cudaMemsetAsync(at, 0, bytes.count(), stream_), "cudaMemsetAsync");
}

void CudaStream::record(Event& event) {
  end_range();
  const OnDevice on(device_);
  check(cudaEventRecord(cuda_event(event).handle(), stream_), "cudaEventRecord");
}

void CudaStream::wait(Event& event) {
  end_range();
  const OnDevice on(device_);
  check(cudaStreamWaitEvent(stream_, cuda_event(event).handle(), 0), "cudaStreamWaitEvent");
}

void CudaStream::synchronize() {
  end_range();
  const OnDevice on(device_);
  check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

void CudaStream::launching(std::string_view kernel, Bytes) {
  end_range();
  std::array<char, 64> text{};
  kernel.copy(text.data(), text.size() - 1);
  range_ = nvtxRangeStartA(text.data());
}

void CudaStream::end_range() noexcept {
  if (range_ != 0) nvtxRangeEnd(std::exchange(range_, 0));
}

CudaStream& cuda_stream(Stream& stream) {
  auto* const found = dynamic_cast<CudaStream*>(&stream.innermost());
  SHARDPLAN_CHECK(found != nullptr, "a stream of another device where a CUDA stream is needed");
  return *found;
}

CudaDevice::CudaDevice(int index) : index_(index) {
  const int count = device_count();
  if (index >= 0 && index < count) return;
  throw ConfigError("CUDA", "", fmt::format("there is no GPU {}: this machine has {}, counted from 0", index, count));
}

std::string CudaDevice::name() const {
  return fmt::format("cuda:{}", index_);
}

std::unique_ptr<Memory> CudaDevice::allocate(const MemoryRequest& request) {
  SHARDPLAN_CHECK(request.shift <= request.shift_room && request.shift_room <= request.bytes,
                  "a memory request needs shift <= shift room <= bytes");
  if (request.tier == MemoryTier::host) {
    return std::make_unique<OrdinaryMemory>(HostMapping(request.bytes, shardplan::name(request.tier)), request);
  }
  // Locked pages cannot be had from what is not there, and taking all of them stops the machine.
  if (request.tier == MemoryTier::pinned_host && request.bytes > available_host_memory()) {
    throw OutOfMemory(std::string(shardplan::name(request.tier)), request.bytes, available_host_memory());
  }
  Allocation allocation(index_, request.tier, request.bytes);
  allocation.zero(request.bytes);
  return std::make_unique<CudaMemory>(std::move(allocation), request);
}

std::unique_ptr<Stream> CudaDevice::make_stream() {
  return std::make_unique<CudaStream>(index_);
}

std::unique_ptr<Event> CudaDevice::make_event() {
  return std::make_unique<CudaEvent>(index_);
}

}  // namespace shardplan::cuda
