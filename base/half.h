// Conversions between fp32 and the two 16-bit formats: round to nearest, ties to even, by integer operations (and, for
// fp16's subnormals, one exact scaling or one rounded addition in fp32, in the default rounding mode).
//
// No conversion instruction is used: hardware conversions flush denormals (bf16) and some libraries truncate; these do
// neither, so a value has the same bits on every path. Infinities stay; a value beyond the largest finite one becomes
// infinity; a NaN stays a NaN of the same sign with the upper bits of its payload, made quiet on its way to 16 bits.
// tests/base compares all 2^32 floats with an oracle.
//
// constexpr and branch-free where it counts: compilers vectorise loops over them.
#pragma once

#include <bit>
#include <cstdint>

namespace shardplan {

constexpr std::uint16_t fp32_to_bf16(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
  const std::uint32_t quiet = (u >> 16) | 0x0040U;
  return static_cast<std::uint16_t>((u & 0x7fffffffU) > 0x7f800000U ? quiet : rounded);
}

constexpr float bf16_to_fp32(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

constexpr std::uint16_t fp32_to_fp16(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (u >> 16) & 0x8000U;
  const std::uint32_t magnitude = u & 0x7fffffffU;
  // Normal results: rebias the exponent (127 -> 15), then round the 13 lower bits away. The carry of the rounding
  // runs into the exponent, which is what is wanted, up to infinity.
  const std::uint32_t normal = (magnitude - 0x38000000U + 0x0fffU + ((magnitude >> 13) & 1U)) >> 13;
  // Subnormal results (below 2^-14): next to 0.5 the unit in the last place is 2^-24, which is theirs, so one addition
  // rounds as wanted.
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
  const std::uint32_t nan = 0x7e00U | ((magnitude >> 13) & 0x03ffU);

  std::uint32_t result = magnitude < 0x38800000U ? subnormal : normal;
  result = magnitude >= 0x477ff000U ? 0x7c00U : result;  // 65520 and above round to infinity
  result = magnitude > 0x7f800000U ? nan : result;
  return static_cast<std::uint16_t>(sign | result);
}

constexpr float fp16_to_fp32(std::uint16_t value) {
  const std::uint32_t sign = (static_cast<std::uint32_t>(value) & 0x8000U) << 16;
  const std::uint32_t magnitude = value & 0x7fffU;
  // Subnormals are exact multiples of 2^-24, which fp32 holds as normal numbers.
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24F;
  const std::uint32_t special = 0x7f800000U | (magnitude << 13) | (magnitude > 0x7c00U ? 0x00400000U : 0U);
  std::uint32_t result = (magnitude << 13) + 0x38000000U;
  result = magnitude < 0x0400U ? std::bit_cast<std::uint32_t>(subnormal) : result;
  result = magnitude >= 0x7c00U ? special : result;
  return std::bit_cast<float>(sign | result);
}

}  // namespace shardplan
