// Small things that several folders print.
#pragma once

#include <cstdint>
#include <string>

namespace shardplan {

// 6738415616 -> "6,738,415,616".
std::string with_commas(std::uint64_t number);

}  // namespace shardplan
