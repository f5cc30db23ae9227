#include "shard/kernels/accumulate.h"

#include <array>
#include <cstring>

#include "base/error.h"
#include "base/half.h"

namespace shardplan {
namespace {

template <DType dtype>
float widen(const std::byte* data, std::size_t i) {
  if constexpr (dtype == DType::f32) {
    return reinterpret_cast<const float*>(data)[i];
  } else {
    const std::uint16_t bits16 = reinterpret_cast<const std::uint16_t*>(data)[i];
    return dtype == DType::bf16 ? bf16_to_fp32(bits16) : fp16_to_fp32(bits16);
  }
}

template <DType dtype>
void store(std::byte* data, std::size_t i, float value) {
  if constexpr (dtype == DType::f32) {
    reinterpret_cast<float*>(data)[i] = value;
  } else {
    reinterpret_cast<std::uint16_t*>(data)[i] = dtype == DType::bf16 ? fp32_to_bf16(value) : fp32_to_fp16(value);
  }
}

template <DType sum_dtype, DType part_dtype>
void loop(const Elements& sum, const ConstElements& part) {
  for (std::size_t i = 0; i < sum.elements; ++i) {
    store<sum_dtype>(sum.data, i, widen<sum_dtype>(sum.data, i) + widen<part_dtype>(part.data, i));
  }
}

template <DType sum_dtype>
void for_part(const Elements& sum, const ConstElements& part) {
  switch (part.dtype) {
    case DType::f32:
      return loop<sum_dtype, DType::f32>(sum, part);
    case DType::bf16:
      return loop<sum_dtype, DType::bf16>(sum, part);
    default:
      return loop<sum_dtype, DType::f16>(sum, part);
  }
}

}  // namespace

void accumulate_elements(const Elements& sum, const ConstElements& part) {
  check_kernel_dtype(sum.dtype);
  check_kernel_dtype(part.dtype);
  SHARDPLAN_CHECK(sum.elements == part.elements, "accumulate: arrays of different lengths");
  switch (sum.dtype) {
    case DType::f32:
      return for_part<DType::f32>(sum, part);
    case DType::bf16:
      return for_part<DType::bf16>(sum, part);
    default:
      return for_part<DType::f16>(sum, part);
  }
}

}  // namespace shardplan
