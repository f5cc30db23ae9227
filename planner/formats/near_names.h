// "Did you mean": the names nearest to one that is not known.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace shardplan {

// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
std::size_t edit_distance(std::string_view a, std::string_view b);

// The `count` candidates nearest to `word`, nearest first: those that begin with it, then by edit distance.
std::vector<std::string> near_names(std::string_view word, std::vector<std::string> candidates, std::size_t count = 5);

}  // namespace shardplan
