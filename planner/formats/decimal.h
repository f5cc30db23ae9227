// Decimal numerals that stand for integers.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace shardplan {

// The integer that an unsigned numeral such as "7", "5e8", "4096.0" or "1.5e3" stands for, exactly: no floating point
// is involved. Nothing if it is not a numeral, not an integer or does not fit into 64 bits.
std::optional<std::uint64_t> exact_integer(std::string_view numeral);

}  // namespace shardplan
