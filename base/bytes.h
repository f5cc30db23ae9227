// A number of bytes, as a type of its own.
//
//   Bytes capacity = 80_GiB;            // literals: _B _kB _MB _GB _TB (powers of 1000), _KiB _MiB _GiB _TiB (of 1024)
//   capacity - 2 * weights              // every operation throws ArithmeticOverflow instead of wrapping
//   Bytes{n}                            // a bare integer converts only when asked to
//   in_gb(b), in_gib(b)                 // "14.00 GB", "13.04 GiB": a printed size always says which
//
// A difference that can be negative is not a number of bytes: see signed_difference.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "base/checked.h"

namespace shardplan {

class Bytes {
 public:
  constexpr Bytes() = default;
  constexpr explicit Bytes(std::uint64_t count) : count_(count) {}

  constexpr std::uint64_t count() const { return count_; }
  constexpr auto operator<=>(const Bytes&) const = default;

  constexpr Bytes& operator+=(Bytes other) { return *this = *this + other; }
  constexpr Bytes& operator-=(Bytes other) { return *this = *this - other; }

  friend constexpr Bytes operator+(Bytes a, Bytes b) { return Bytes{checked_add(a.count_, b.count_)}; }
  friend constexpr Bytes operator-(Bytes a, Bytes b) { return Bytes{checked_subtract(a.count_, b.count_)}; }
  friend constexpr Bytes operator*(Bytes a, std::uint64_t n) { return Bytes{checked_multiply(a.count_, n)}; }
  friend constexpr Bytes operator*(std::uint64_t n, Bytes a) { return a * n; }

 private:
  std::uint64_t count_ = 0;
};

constexpr Bytes round_up(Bytes value, Bytes multiple) {
  return Bytes{round_up(value.count(), multiple.count())};
}

// a - b with its sign, saturated at the ends of std::int64_t.
constexpr std::int64_t signed_difference(Bytes a, Bytes b) {
  constexpr std::uint64_t largest = INT64_MAX;
  if (a >= b) {
    const std::uint64_t distance = a.count() - b.count();
    return distance > largest ? INT64_MAX : static_cast<std::int64_t>(distance);
  }
  const std::uint64_t distance = b.count() - a.count();
  return distance > largest ? INT64_MIN : -static_cast<std::int64_t>(distance);
}

// "14.00 GB" (1e9) and "13.04 GiB" (2^30): three significant places or more, in GB resp. GiB from 0.1 of it on,
// in MB, kB and B (MiB, KiB, B) below.
std::string in_gb(Bytes bytes);
std::string in_gib(Bytes bytes);

// Reads "80GiB", "80 GB", "1.5TiB", "512MB" or "1024" (bytes); parts of a byte are cut off. Throws ConfigError on
// anything else, "80Gi", "80G" and "-1GB" included: a size always says whether it counts in thousands or in 1024s. So
// does one that does not fit into 64 bits.
Bytes parse_bytes(const std::string& text);

inline namespace literals {
constexpr Bytes operator""_B(unsigned long long n) {
  return Bytes{n};
}
constexpr Bytes operator""_kB(unsigned long long n) {
  return n * Bytes{1'000};
}
constexpr Bytes operator""_MB(unsigned long long n) {
  return n * Bytes{1'000'000};
}
constexpr Bytes operator""_GB(unsigned long long n) {
  return n * Bytes{1'000'000'000};
}
constexpr Bytes operator""_TB(unsigned long long n) {
  return n * Bytes{1'000'000'000'000};
}
constexpr Bytes operator""_KiB(unsigned long long n) {
  return n * Bytes{1ULL << 10};
}
constexpr Bytes operator""_MiB(unsigned long long n) {
  return n * Bytes{1ULL << 20};
}
constexpr Bytes operator""_GiB(unsigned long long n) {
  return n * Bytes{1ULL << 30};
}
constexpr Bytes operator""_TiB(unsigned long long n) {
  return n * Bytes{1ULL << 40};
}
}  // namespace literals

}  // namespace shardplan
