#include "tests/support/reference_reduction.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"

namespace shardplan::test {

float contribution(int rank, std::uint64_t element) {
  // splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
  std::uint64_t bits = (element + 1) * 0x9e3779b97f4a7c15U + static_cast<std::uint64_t>(rank) * 0xd1342543de82ef95U;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9U;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebU;
  bits ^= bits >> 31;
  const float significand = 1.0F + static_cast<float>(bits & 0x7fffffU) * 0x1p-23F;
  const float value = std::ldexp(significand, static_cast<int>((bits >> 23) % 12) - 6);
  return (bits >> 40 & 1U) != 0 ? -value : value;
}

void store(DType dtype, float value, std::byte* at) {
  if (dtype == DType::f32) {
    std::memcpy(at, &value, sizeof(value));
    return;
  }
  SHARDPLAN_CHECK(dtype == DType::bf16 || dtype == DType::f16, "a gradient dtype");
  const std::uint16_t half = dtype == DType::bf16 ? fp32_to_bf16(value) : fp32_to_fp16(value);
  std::memcpy(at, &half, sizeof(half));
}

float load(DType dtype, const std::byte* at) {
  if (dtype == DType::f32) {
    float value = 0;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  SHARDPLAN_CHECK(dtype == DType::bf16 || dtype == DType::f16, "a gradient dtype");
  std::uint16_t half = 0;
  std::memcpy(&half, at, sizeof(half));
  return dtype == DType::bf16 ? bf16_to_fp32(half) : fp16_to_fp32(half);
}

float reduce_in_tree_order(const std::vector<float>& values, int group_size, float scale) {
  const std::size_t group = group_size == 0 ? values.size() : static_cast<std::size_t>(group_size);
  float total = 0;
  for (std::size_t first = 0; first < values.size(); first += group) {
    float partial = values[first];
    for (std::size_t i = first + 1; i < std::min(first + group, values.size()); ++i) partial = partial + values[i];
    total = first == 0 ? partial : total + partial;
  }
  return total * scale;
}

}  // namespace shardplan::test
