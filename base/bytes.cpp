#include "base/bytes.h"

#include <fmt/format.h>

#include <array>
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
  const auto refuse = [&](const char* why) {
    throw ConfigError("", "",
                      fmt::format("'{}' is {}: expected a number and one of B, kB, MB, GB, TB (thousands) or KiB, MiB, "
                                  "GiB, TiB (1024s), as in 80GiB",
                                  text, why));
  };
  // The number without its point, and what its point divides by.
  std::uint64_t digits = 0;
  std::uint64_t divisor = 0;
  std::size_t length = 0;
  try {
    for (; length < text.size(); ++length) {
      const char c = text[length];
      if (c == '.' && length > 0 && divisor == 0) {
        divisor = 1;
      } else if (c >= '0' && c <= '9') {
        digits = checked_add(checked_multiply(digits, 10), static_cast<std::uint64_t>(c - '0'));
        divisor = checked_multiply(divisor, 10);
      } else {
        break;
      }
    }
    if (length == 0 || divisor == 1 || text[length - 1] == '.') refuse("not a size");
    std::string_view name = std::string_view(text).substr(length);
    if (!name.empty() && name.front() == ' ') name.remove_prefix(1);
    for (const Suffix& suffix : kSuffixes) {
      if (name != suffix.name) continue;
      const Bytes scaled = digits * Bytes{suffix.factor};
      return divisor == 0 ? scaled : Bytes{scaled.count() / divisor};
    }
  } catch (const ArithmeticOverflow&) {
    refuse("more than 64 bits can count");
  }
  refuse("not a size");
  return {};
}

}  // namespace shardplan
