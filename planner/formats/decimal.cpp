#include "planner/formats/decimal.h"

#include <algorithm>

namespace shardplan {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool multiply_add(std::uint64_t& value, std::uint64_t factor, std::uint64_t addend) {
  return !__builtin_mul_overflow(value, factor, &value) && !__builtin_add_overflow(value, addend, &value);
}

bool shift_left(std::uint64_t& value, std::int64_t decimal_places) {
  if (value == 0) return true;
  if (decimal_places > 19) return false;
  for (; decimal_places > 0; --decimal_places) {
    if (!multiply_add(value, 10, 0)) return false;
  }
  return true;
}

// "e8", "E+8", "e-3"; saturates far beyond what 64 bits can use. Nothing if it is malformed.
std::optional<std::int64_t> exponent_of(std::string_view text) {
  if (text.empty()) return 0;
  text.remove_prefix(1);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.empty() || !std::all_of(text.begin(), text.end(), is_digit)) return std::nullopt;
  std::int64_t exponent = 0;
  for (const char c : text) exponent = std::min<std::int64_t>(exponent * 10 + (c - '0'), 1'000'000'000'000);
  return negative ? -exponent : exponent;
}

}  // namespace

std::optional<std::uint64_t> exact_integer(std::string_view numeral) {
  const std::size_t end = std::min(numeral.find_first_of("eE"), numeral.size());
  const std::optional<std::int64_t> exponent = exponent_of(numeral.substr(end));
  if (!exponent) return std::nullopt;

  // numeral = value x 10^zeros x 10^(exponent - fraction), where value does not end in 0.
  std::uint64_t value = 0;
  std::int64_t zeros = 0;
  std::int64_t fraction = 0;
  std::size_t digits = 0;
  bool point = false;
  for (const char c : numeral.substr(0, end)) {
    if (c == '.' && !point && digits > 0) {
      point = true;
    } else if (is_digit(c)) {
      ++digits;
      if (point) ++fraction;
      if (c == '0') {
        ++zeros;
      } else {
        if (!shift_left(value, zeros) || !multiply_add(value, 10, static_cast<std::uint64_t>(c - '0'))) {
          return std::nullopt;
        }
        zeros = 0;
      }
    } else {
      return std::nullopt;
    }
  }
  if (digits == 0 || numeral[end - 1] == '.') return std::nullopt;
  if (value == 0) return 0;
  const std::int64_t places = zeros + *exponent - fraction;
  if (places < 0 || !shift_left(value, places)) return std::nullopt;
  return value;
}

}  // namespace shardplan
