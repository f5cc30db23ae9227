// The reduction kernel of NcclCommunicator.
#pragma once

#include <cuda_runtime_api.h>

#include "runtime/cuda/tree_sum.h"

namespace shardplan::cuda {

// Puts the sum of `elements` elements on the stream, of the current device.
void launch_sum(cudaStream_t stream, const StagedSum& sum, std::uint64_t elements);

}  // namespace shardplan::cuda
