#pragma once

#include <bit>
#include <cstdint>
#include <numbers>

namespace shardplan {

// e^x to a relative error of 2^-22. A NaN stays one; below -87 and above 88 the result is that of the bound: never
// zero, a denormal or infinite. Unlike libm's, the compiler can vectorise a loop over it.
//
// x = n ln2 + r with |r| <= ln2 / 2: e^r by the polynomial of Cephes' expf, 2^n by writing its exponent. Adding
// 1.5 * 2^23 rounds to the nearest integer and leaves it in the lower bits.
inline float fast_exp(float x) {
  constexpr float kRound = 0x1.8p23F;
  constexpr float kLn2High = 0x1.63p-1F;  // NOLINT(modernize-use-std-numbers): so short that n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4F;
  x = x < -87.0F ? -87.0F : x;
  x = x > 88.0F ? 88.0F : x;
  const float shifted = x * std::numbers::log2e_v<float> + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kRound) + 127U;
  return p * std::bit_cast<float>(exponent << 23);
}

}  // namespace shardplan
