// The launches of CudaKernels: each puts one kernel on a stream of the current device.
#pragma once

#include <cuda_runtime_api.h>

#include "shard/kernels/cuda/element_kernels.h"

namespace shardplan::cuda {

void launch_cast(cudaStream_t stream, const CastElements& cast, std::uint64_t elements);
void launch_accumulate(cudaStream_t stream, const AccumulateElements& accumulate, std::uint64_t elements);
void launch_update(cudaStream_t stream, const UpdateScalars& scalars, const UpdatePointers& arrays);
// Writes the sum to *result, which the device can write to.
void launch_sum_of_squares(cudaStream_t stream, DType dtype, const std::byte* values, std::uint64_t elements,
                           double* result);

}  // namespace shardplan::cuda
