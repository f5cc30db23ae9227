// Integer arithmetic that refuses to wrap. Every size in the project is computed through these three functions
// or through Bytes, which uses them: a model that is too large to count is an error, never a small number.
//
// They are the compiler's own overflow builtins, which constant expressions and CUDA accept too.
#pragma once

#include <cstdint>

namespace shardplan {

// Throws ArithmeticOverflow (base/error.h). Out of line, so that the callers below stay a few instructions.
[[noreturn]] void throw_overflow(const char* operation, std::uint64_t left, std::uint64_t right);

constexpr std::uint64_t checked_add(std::uint64_t left, std::uint64_t right) {
  std::uint64_t result = 0;
  if (__builtin_add_overflow(left, right, &result)) throw_overflow("+", left, right);
  return result;
}

constexpr std::uint64_t checked_subtract(std::uint64_t left, std::uint64_t right) {
  std::uint64_t result = 0;
  if (__builtin_sub_overflow(left, right, &result)) throw_overflow("-", left, right);
  return result;
}

constexpr std::uint64_t checked_multiply(std::uint64_t left, std::uint64_t right) {
  std::uint64_t result = 0;
  if (__builtin_mul_overflow(left, right, &result)) throw_overflow("*", left, right);
  return result;
}

// The smallest multiple of `multiple` that is not less than `value`. `multiple` must not be 0.
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
  const std::uint64_t remainder = value % multiple;
  return remainder == 0 ? value : checked_add(value, multiple - remainder);
}

// value / divisor, rounded up. `divisor` must not be 0.
constexpr std::uint64_t divide_up(std::uint64_t value, std::uint64_t divisor) {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}

}  // namespace shardplan
