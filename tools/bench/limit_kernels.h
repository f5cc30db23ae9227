// Loops that do nothing but read and write: limits for kernels of the same memory traffic. One source
// (limit_kernels.cpp), compiled once for each level of processor, as the kernels that they are limits of are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shardplan::bench {

// An optimizer step's traffic: three fp32 arrays are read and written, the gradient (fp32 or 16 bits) is read and,
// where there is one, a 16-bit parameter is written. `zero` is 0 and the compiler does not know it: values stay.
struct StreamRange {
  float* first = nullptr;
  float* second = nullptr;
  float* third = nullptr;
  const float* gradient = nullptr;
  const std::uint16_t* narrow_gradient = nullptr;  // with narrow_parameter, in place of gradient
  std::uint16_t* narrow_parameter = nullptr;
  std::size_t elements = 0;
  float zero = 0;
};

struct LimitKernels {
  void (*stream)(const StreamRange& range);
  std::uint32_t (*read)(const std::uint32_t* words, std::size_t count);  // returns all of them or-ed
};

}  // namespace shardplan::bench
