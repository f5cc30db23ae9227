// Text from anywhere (names in a file, a command line) as code points, so that what is written is valid UTF-8.
#pragma once

#include <string>
#include <string_view>

namespace shardplan::report {

// A byte that is no part of a valid sequence becomes U+FFFD.
std::u32string code_points(std::string_view text);
std::string utf8(std::u32string_view points);

}  // namespace shardplan::report
