#include "tests/cuda/random_arrays.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "tests/support/reference_reduction.h"

namespace shardplan::test {
namespace {

constexpr std::size_t kAround = 4;  // elements after the last one

std::size_t width(DType dtype) {
  return bits(dtype) / 8;
}

// Any bits at all, or a number of ordinary size.
void put(DType dtype, std::byte* at, std::mt19937& random) {
  const auto any = static_cast<std::uint32_t>(random());
  switch (random() % 8) {
    case 0:
      std::memcpy(at, &any, width(dtype));
      break;
    case 1:  // subnormal, or zero
      store(dtype, std::ldexp(static_cast<float>(any % 64), dtype == DType::f16 ? -24 : -149), at);
      break;
    default:
      store(dtype, std::ldexp(static_cast<float>(any) - 2147483648.0F, -31 - static_cast<int>(random() % 12)), at);
  }
}

}  // namespace

RandomArray::RandomArray(DType dtype, std::size_t start, std::size_t elements, std::mt19937& random)
    : dtype_(dtype),
      elements_(elements),
      bytes_((start + elements + kAround) * width(dtype) + 4096),
      first_(4096 - reinterpret_cast<std::uintptr_t>(bytes_.data()) % 4096 + start * width(dtype)) {
  bytes_.resize(first_ + (elements + kAround) * width(dtype));
  for (std::size_t i = 0; i < elements + kAround; ++i) put(dtype, bytes_.data() + first_ + i * width(dtype), random);
}

std::string difference(RandomArray& actual, RandomArray& expected, bool any_nan) {
  const std::size_t step = width(expected.dtype());
  const std::span<std::byte> a = actual.buffer().subspan(actual.first_byte());
  const std::span<std::byte> e = expected.buffer().subspan(expected.first_byte());
  for (std::size_t at = 0; at + step <= e.size(); at += step) {
    if (std::memcmp(a.data() + at, e.data() + at, step) == 0) continue;
    const float got = load(expected.dtype(), a.data() + at);
    const float wanted = load(expected.dtype(), e.data() + at);
    if (any_nan && std::isnan(got) && std::isnan(wanted)) continue;
    return fmt::format("element {}: {:a}, expected {:a}", at / step, got, wanted);
  }
  return "";
}

}  // namespace shardplan::test
