// Compiled once per level, with SHARDPLAN_KERNEL_LEVEL its namespace: see shard/kernels/optimizer_kernels.cpp.
#include "tools/bench/limit_kernels.h"

#include <bit>

namespace shardplan::bench::SHARDPLAN_KERNEL_LEVEL {
namespace {

void stream_wide(float* __restrict first, float* __restrict second, float* __restrict third,
                 const float* __restrict gradient, std::size_t elements, float zero) {
  for (std::size_t i = 0; i < elements; ++i) {
    const float nothing = gradient[i] * zero;
    first[i] += nothing;
    second[i] += nothing;
    third[i] += nothing;
  }
}

void stream_narrow(float* __restrict first, float* __restrict second, float* __restrict third,
                   const std::uint16_t* __restrict gradient, std::uint16_t* __restrict parameter, std::size_t elements,
                   float zero) {
  for (std::size_t i = 0; i < elements; ++i) {
    const float nothing = std::bit_cast<float>(static_cast<std::uint32_t>(gradient[i]) << 16) * zero;
    first[i] += nothing;
    second[i] += nothing;
    third[i] += nothing;
    parameter[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(first[i]) >> 16);
  }
}

void stream(const StreamRange& r) {
  if (r.narrow_gradient != nullptr) {
    stream_narrow(r.first, r.second, r.third, r.narrow_gradient, r.narrow_parameter, r.elements, r.zero);
  } else {
    stream_wide(r.first, r.second, r.third, r.gradient, r.elements, r.zero);
  }
}

std::uint32_t read(const std::uint32_t* words, std::size_t count) {
  std::uint32_t all = 0;
  for (std::size_t i = 0; i < count; ++i) all |= words[i];
  return all;
}

}  // namespace

extern const LimitKernels kLimitKernels;
const LimitKernels kLimitKernels{stream, read};

}  // namespace shardplan::bench::SHARDPLAN_KERNEL_LEVEL
