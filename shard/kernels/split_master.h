// An fp32 master in two 16-bit halves: a bf16 parameter that can be used as it is, and the rest.
//
// `parameter` is the master rounded to nearest bf16, ties away from zero; `rest` is the master's lower 16 bits. The
// rounding carried exactly where the upper bit of `rest` is set, so join_master gets the master back, bit for bit.
// (Ties to even could not be undone: they carry for half of the ties.) A NaN is made quiet and loses the lower half of
// its payload, since a carry could make it a number.
#pragma once

#include <bit>
#include <cstdint>

namespace shardplan {

struct SplitMaster {
  std::uint16_t parameter;
  std::uint16_t rest;
};

constexpr SplitMaster split_master(float master) {
  const auto u = std::bit_cast<std::uint32_t>(master);
  const bool nan = (u & 0x7fffffffU) > 0x7f800000U;
  const std::uint32_t kept = nan ? (u | 0x00400000U) & 0xffff0000U : u;
  return {.parameter = static_cast<std::uint16_t>((kept + 0x8000U) >> 16), .rest = static_cast<std::uint16_t>(kept)};
}

constexpr float join_master(std::uint16_t parameter, std::uint16_t rest) {
  const std::uint32_t carried = (static_cast<std::uint32_t>(rest) & 0x8000U) << 1;
  return std::bit_cast<float>((static_cast<std::uint32_t>(parameter) << 16) - carried + rest);
}

}  // namespace shardplan
