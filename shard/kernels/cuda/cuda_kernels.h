// The kernels of a CudaDevice's streams: the bits of the CPU's, at the speed of the GPU's memory. Included inside of the
// CUDA module only.
#pragma once

#include "shard/kernels/kernels.h"

namespace shardplan::cuda {

// Arrays are anything that the GPU can address: its own memory or pinned host memory.
const Kernels& cuda_kernels();

}  // namespace shardplan::cuda
