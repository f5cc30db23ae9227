// Random numbers without a state: each is a function of its key alone, so any rank can ask for any, in any order.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <numbers>

namespace shardplan {

// A bijection of 64 bits in which each bit of the result depends on every bit of the argument: SplitMix64's finaliser
// (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), with Stafford's constants "Mix13".
constexpr std::uint64_t mix_bits(std::uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

// 64 random bits, a function of the key's words and their order.
template <std::convertible_to<std::uint64_t>... Words>
constexpr std::uint64_t random_bits(Words... key) {
  std::uint64_t state = 0;
  ((state = mix_bits(state + 0x9e3779b97f4a7c15U + static_cast<std::uint64_t>(key))), ...);
  return state;
}

// Uniform in (0, 1): never an end, and exact in double.
constexpr double uniform(std::uint64_t bits) {
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}

// Element `index` of a sequence of normal numbers, mean 0 and deviation 1. Box and Muller's transform makes two of two
// uniform ones: an even index takes the cosine, the odd one after it the sine.
inline double normal(std::uint64_t key, std::uint64_t index) {
  const std::uint64_t even = index & ~std::uint64_t{1};
  const double radius = std::sqrt(-2 * std::log(uniform(random_bits(key, even))));
  const double angle = 2 * std::numbers::pi * uniform(random_bits(key, even + 1));
  return radius * (index == even ? std::cos(angle) : std::sin(angle));
}

}  // namespace shardplan
