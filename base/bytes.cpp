#include "base/bytes.h"

#include <fmt/format.h>

#include <array>
#include <cctype>
#include <cmath>
#include <string_view>

#include "base/error.h"

namespace shardplan {
namespace {

struct Suffix {
  std::string_view name;
  std::uint64_t factor;
};

constexpr std::array<Suffix, 11> kSuffixes{{{"B", 1},
                                            {"", 1},
                                            {"kB", 1'000},
                                            {"MB", 1'000'000},
                                            {"GB", 1'000'000'000},
                                            {"TB", 1'000'000'000'000},
                                            {"KB", 1'000},
                                            {"KiB", 1ULL << 10},
                                            {"MiB", 1ULL << 20},
                                            {"GiB", 1ULL << 30},
                                            {"TiB", 1ULL << 40}}};

std::string print(Bytes bytes, const std::array<Suffix, 3>& units) {
  const auto count = static_cast<double>(bytes.count());
  for (const Suffix& unit : units) {
    const double value = count / static_cast<double>(unit.factor);
    if (value >= 0.1) return fmt::format("{:.{}f} {}", value, value < 1 ? 3 : 2, unit.name);
  }
  return fmt::format("{} B", bytes.count());
}

}  // namespace

std::string in_gb(Bytes bytes) {
  return print(bytes, {{{"GB", 1'000'000'000}, {"MB", 1'000'000}, {"kB", 1'000}}});
}

std::string in_gib(Bytes bytes) {
  return print(bytes, {{{"GiB", 1ULL << 30}, {"MiB", 1ULL << 20}, {"KiB", 1ULL << 10}}});
}

Bytes parse_bytes(const std::string& text) {
  const ConfigError bad("", "",
                        fmt::format("'{}' is not a size: expected a number and one of B, kB, MB, GB, TB "
                                    "(thousands) or KiB, MiB, GiB, TiB (1024s), as in 80GiB",
                                    text));
  std::size_t digits = 0;
  std::size_t points = 0;
  while (digits < text.size() && (std::isdigit(static_cast<unsigned char>(text[digits])) || text[digits] == '.')) {
    points += text[digits] == '.' ? 1U : 0U;
    ++digits;
  }
  if (digits == 0 || points > 1 || text[0] == '.' || text[digits - 1] == '.') throw bad;
  std::string_view name = std::string_view(text).substr(digits);
  if (!name.empty() && name.front() == ' ') name.remove_prefix(1);
  for (const Suffix& suffix : kSuffixes) {
    if (name != suffix.name) continue;
    if (points == 0) {
      std::uint64_t whole = 0;
      for (std::size_t i = 0; i < digits; ++i) {
        whole = checked_add(checked_multiply(whole, 10), static_cast<std::uint64_t>(text[i] - '0'));
      }
      return whole * Bytes{suffix.factor};
    }
    const double exact = std::stod(text.substr(0, digits)) * static_cast<double>(suffix.factor);
    if (!(exact < 0x1p63)) throw_overflow("*", 0, suffix.factor);
    return Bytes{static_cast<std::uint64_t>(std::llround(exact))};
  }
  throw bad;
}

}  // namespace shardplan
