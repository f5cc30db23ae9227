// Arrays whose dtype is known at run time, and two loops over them: casts and the sum of squares for gradient norms.
//
// The dtypes are fp32, bf16 and fp16; anything else fails a CHECK. 16-bit values are std::uint16_t, converted as
// base/half.h says. Views own nothing. Stateless: any number of threads on disjoint ranges. Results are the same bits
// for every level of processor, which tests choose with the last argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "shard/kernels/optimizer_kernels.h"

namespace shardplan {

// `elements` elements of `dtype` from `data` on, aligned as the element is. By default: no array.
// NOLINTBEGIN(google-explicit-constructor): a span of floats is such an array, and what can be written can be read
struct Elements {
  DType dtype = DType::f32;
  std::byte* data = nullptr;
  std::size_t elements = 0;

  Elements() = default;
  Elements(DType type, std::byte* first, std::size_t count) : dtype(type), data(first), elements(count) {}
  Elements(std::span<float> values)
      : Elements(DType::f32, reinterpret_cast<std::byte*>(values.data()), values.size()) {}
  Elements(DType type, std::span<std::uint16_t> values)
      : Elements(type, reinterpret_cast<std::byte*>(values.data()), values.size()) {}
};

// The same, to read from.
struct ConstElements {
  DType dtype = DType::f32;
  const std::byte* data = nullptr;
  std::size_t elements = 0;

  ConstElements() = default;
  ConstElements(const Elements& other) : dtype(other.dtype), data(other.data), elements(other.elements) {}
  ConstElements(DType type, const std::byte* first, std::size_t count) : dtype(type), data(first), elements(count) {}
  ConstElements(std::span<float> values) : ConstElements(std::span<const float>(values)) {}
  ConstElements(std::span<const float> values)
      : ConstElements(DType::f32, reinterpret_cast<const std::byte*>(values.data()), values.size()) {}
  ConstElements(DType type, std::span<const std::uint16_t> values)
      : ConstElements(type, reinterpret_cast<const std::byte*>(values.data()), values.size()) {}
};
// NOLINTEND(google-explicit-constructor)

// Every element of `from` in the dtype of `to`: exact to fp32, rounded to nearest even to bf16 and fp16 (from one
// 16-bit type to the other that is still one rounding). As many elements; no overlap.
void cast(const Elements& to, const ConstElements& from, const OptimizerKernels& kernels = best_optimizer_kernels());

struct SumOfSquares {
  double sum = 0;
  bool finite = true;  // no element is an infinity or a NaN; `sum` is one if there is
};

// The sum of the squares of the elements, in double, in this order whatever the processor: element i is added to lane
// i mod 32, each lane in order of i, from 0; then lane k += lane k + 16 for k < 16, then k + 8 for k < 8, and so on
// to lane 0. Each square is exact. So the sum is a function of the range: the sum of two halves is not the same bits as
// the sum of the whole. Zeros, as in padding, change no bit.
SumOfSquares sum_of_squares(const ConstElements& values, const OptimizerKernels& kernels = best_optimizer_kernels());

// CHECK that the dtype is fp32, bf16 or fp16.
void check_kernel_dtype(DType dtype);

}  // namespace shardplan
