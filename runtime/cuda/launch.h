// One launch for every kernel that works element by element. Included by CUDA sources only.
#pragma once

#include <cuda_runtime.h>

#include "runtime/cuda/elements.h"
#include "runtime/cuda/error.h"

namespace shardplan::cuda {

inline constexpr unsigned kThreads = 256;  // of a block
// Enough blocks to fill any device several times; threads stride over what is left.
inline constexpr std::uint64_t kMostBlocks = 4096;

template <typename Body>
__global__ void __launch_bounds__(kThreads) each_element(Cut cut, Body body) {
  const std::uint64_t thread = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
  take_part(cut, thread, std::uint64_t{gridDim.x} * kThreads, body);
}

// `body` over all elements, of the current device. Nothing for none.
template <typename Body>
void launch_each(cudaStream_t stream, const char* kernel, const Cut& cut, const Body& body) {
  if (cut.elements == 0) return;
  const std::uint64_t parts = std::max(cut.vectors, cut.elements - cut.vectors * kVector);
  const std::uint64_t blocks = std::min((parts + kThreads - 1) / kThreads, kMostBlocks);
  each_element<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(cut, body);
  check(cudaGetLastError(), kernel);
}

}  // namespace shardplan::cuda
