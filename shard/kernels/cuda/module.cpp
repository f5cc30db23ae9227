// The entry of libshardplan-cuda.so, and all that it exports.
#include <cuda_runtime_api.h>

#include "runtime/cuda/cuda_device.h"
#include "runtime/cuda/error.h"
#include "runtime/cuda/nccl_communicator.h"
#include "shard/cuda_backend.h"
#include "shard/kernels/cuda/cuda_kernels.h"

namespace shardplan::cuda {
namespace {

class Backend final : public CudaBackend {
 public:
  std::vector<CudaGpu> gpus() const override {
    std::vector<CudaGpu> found;
    const int count = device_count();
    for (int index = 0; index < count; ++index) {
      cudaDeviceProp properties{};
      check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
      found.push_back({.index = index,
                       .name = properties.name,
                       .memory = Bytes{properties.totalGlobalMem},
                       .compute_major = properties.major,
                       .compute_minor = properties.minor,
                       .multiprocessors = properties.multiProcessorCount});
    }
    return found;
  }
  std::unique_ptr<Device> make_device(int gpu) const override { return std::make_unique<CudaDevice>(gpu); }
  const Kernels& kernels() const override { return cuda_kernels(); }
  std::unique_ptr<Communicator> make_communicator(int gpu, const NcclOptions& options) const override {
    return make_nccl_communicator(gpu, options);
  }
};

}  // namespace
}  // namespace shardplan::cuda

extern "C" __attribute__((visibility("default"))) const shardplan::CudaModule* shardplan_cuda_module() {
  static const shardplan::cuda::Backend backend;
  static const shardplan::CudaModule module{SHARDPLAN_VERSION, &backend};
  return &module;
}
