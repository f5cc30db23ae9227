// The CUDA and NCCL backend: one module, libshardplan-cuda.so, that is loaded when it is asked for. The same programs and
// libraries run with and without it; asked for and not there is an error that says what is missing.
//
//   const CudaBackend& cuda = load_cuda_backend();
//   const auto device = cuda.make_device(0);
//   const auto world = cuda.make_communicator(0, {.rank = rank, .size = size, .all_gather = exchange});
//   ZeroOptimizer optimizer(catalog, plan, *device, {world.get(), world.get()}, {.kernels = &cuda.kernels(), ...});
//
// The plan's transport is staged, unless one rank is all there is. What the client computes goes on compute_stream().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/nccl_options.h"
#include "shard/kernels/kernels.h"

namespace shardplan {

// A GPU of this machine, as its driver describes it.
struct CudaGpu {
  int index = 0;
  std::string name;  // "NVIDIA H100 80GB HBM3"
  Bytes memory;      // that a program can have
  int compute_major = 0;
  int compute_minor = 0;
  int multiprocessors = 0;
};

class CudaBackend {
 public:
  virtual ~CudaBackend() = default;
  // All of them throw ConfigError where there is no driver, no GPU or not this GPU; make_communicator also where NCCL is
  // missing. Other errors of CUDA are Error.
  virtual std::vector<CudaGpu> gpus() const = 0;
  virtual std::unique_ptr<Device> make_device(int gpu) const = 0;
  // For streams and memory of every device made here. The same bits as host_kernels().
  virtual const Kernels& kernels() const = 0;
  // Collective; for arenas of a device of this GPU.
  virtual std::unique_ptr<Communicator> make_communicator(int gpu, const NcclOptions& options) const = 0;
};

// Loads the module at `path`; by default the one in shardplan/ beside the library or program that this function is in,
// or in its ../lib. It stays loaded. Throws ConfigError: it is not there (with the places looked at), cannot be loaded
// (why), or is of another version. Needs no driver and no GPU.
const CudaBackend& load_cuda_backend(const std::string& path = {});

// What the module exports, under kCudaModuleEntry. A library and a module of different versions refuse each other.
struct CudaModule {
  const char* version = nullptr;  // of shardplan
  const CudaBackend* backend = nullptr;
};
inline constexpr const char* kCudaModuleEntry = "shardplan_cuda_module";

}  // namespace shardplan
