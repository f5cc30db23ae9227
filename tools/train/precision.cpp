#include "tools/train/precision.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/half.h"

namespace shardplan {
namespace {

template <typename Element>
Element* elements_of(const TensorView& tensor) {
  return reinterpret_cast<Element*>(tensor.data);
}

[[noreturn]] void throw_bad_dtype(DType dtype) {
  throw ConfigError("", "", fmt::format("the model computes with fp32, bf16 and fp16 tensors, not {}", name(dtype)));
}

template <float (*widen)(std::uint16_t)>
const float* widened(const TensorView& tensor, float* scratch) {
  const auto* const from = elements_of<const std::uint16_t>(tensor);
  for (std::uint64_t i = 0; i < tensor.elements; ++i) scratch[i] = widen(from[i]);
  return scratch;
}

template <float (*widen)(std::uint16_t), std::uint16_t (*narrow)(float)>
void add_narrow(const TensorView& gradient, std::span<const float> values) {
  auto* const to = elements_of<std::uint16_t>(gradient);
  for (std::size_t i = 0; i < values.size(); ++i) to[i] = narrow(widen(to[i]) + values[i]);
}

}  // namespace

const float* in_fp32(const TensorView& tensor, float* scratch) {
  switch (tensor.dtype) {
    case DType::f32:
      return elements_of<const float>(tensor);
    case DType::bf16:
      return widened<bf16_to_fp32>(tensor, scratch);
    case DType::f16:
      return widened<fp16_to_fp32>(tensor, scratch);
    default:
      throw_bad_dtype(tensor.dtype);
  }
}

void add_to_gradient(const TensorView& gradient, std::span<const float> values) {
  if (gradient.elements == 0) return;
  SHARDPLAN_CHECK(gradient.elements == values.size(), "a gradient has its parameter's size");
  switch (gradient.dtype) {
    case DType::f32: {
      auto* const to = elements_of<float>(gradient);
      for (std::size_t i = 0; i < values.size(); ++i) to[i] += values[i];
      return;
    }
    case DType::bf16:
      return add_narrow<bf16_to_fp32, fp32_to_bf16>(gradient, values);
    case DType::f16:
      return add_narrow<fp16_to_fp32, fp32_to_fp16>(gradient, values);
    default:
      throw_bad_dtype(gradient.dtype);
  }
}

}  // namespace shardplan
