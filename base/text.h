// Small things that several folders print.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace shardplan {

// 6738415616 -> "6,738,415,616".
std::string with_commas(std::uint64_t number);

// Equal but for the case of ASCII letters.
bool equal_in_any_case(std::string_view a, std::string_view b);

}  // namespace shardplan
