// A GPU as a device, by the CUDA runtime. Included inside of the CUDA module only: others load it (shard/cuda_backend.h).
//
// Tier device is the GPU's memory; pinned_host is page-locked and readable by the GPU at the same addresses; host is
// ordinary populated memory. Streams run asynchronously: a call returns when its work is queued, and errors of work that
// was queued before come out of later calls, as Error.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "runtime/device.h"

namespace shardplan::cuda {

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(int device);
  ~CudaEvent() override;
  bool reached() const override;
  void wait() override;
  cudaEvent_t handle() const { return event_; }

 private:
  int device_;
  cudaEvent_t event_ = nullptr;
};

// Does not wait for the default stream, nor that for it.
class CudaStream final : public Stream {
 public:
  explicit CudaStream(int device);
  ~CudaStream() override;

  void copy(std::byte* to, const std::byte* from, Bytes bytes) override;
  void zero(std::byte* at, Bytes bytes) override;
  void record(Event& event) override;
  void wait(Event& event) override;
  void synchronize() override;
  // Also an NVTX range on the rank's thread, up to the next call: where profilers see which kernel was launched.
  void launching(std::string_view kernel, Bytes touched) override;

  int device() const { return device_; }
  cudaStream_t handle() const { return stream_; }
  // Eight bytes of pinned memory that a kernel may write its result to; read after synchronize().
  double* result() const { return result_; }

 private:
  void end_range() noexcept;

  int device_;
  cudaStream_t stream_ = nullptr;
  double* result_ = nullptr;
  std::uint64_t range_ = 0;
};

// The CudaStream beneath adaptors. CheckFailure for another device's stream.
CudaStream& cuda_stream(Stream& stream);

class CudaDevice final : public Device {
 public:
  // Throws ConfigError where there is no such GPU, or no driver.
  explicit CudaDevice(int index);

  int index() const { return index_; }
  std::string name() const override;
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override;
  std::unique_ptr<Stream> make_stream() override;
  std::unique_ptr<Event> make_event() override;

 private:
  int index_;
};

// How many GPUs there are. ConfigError, saying what is missing, where there is no driver or no GPU.
int device_count();

}  // namespace shardplan::cuda
