// Shell-like patterns for names: * is any run of characters (dots included), ? is one character.
#pragma once

#include <string_view>

namespace shardplan {

bool glob_matches(std::string_view glob, std::string_view text);

}  // namespace shardplan
