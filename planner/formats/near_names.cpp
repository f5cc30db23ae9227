#include "planner/formats/near_names.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace shardplan {

// Optimal string alignment distance, three rows at a time.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> above(b.size() + 1);
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before.swap(above);
    above.swap(row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] == b[j - 1] ? 0U : 1U)});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

std::vector<std::string> near_names(std::string_view word, std::vector<std::string> candidates, std::size_t count) {
  constexpr std::size_t longest = 64;  // a longer word is no misspelling
  word = word.substr(0, longest);
  std::vector<std::tuple<bool, std::size_t, std::string>> ranked;
  for (std::string& candidate : candidates) {
    const bool begins = !word.empty() && candidate.starts_with(word);
    const std::size_t distance = edit_distance(word, candidate);
    ranked.emplace_back(!begins, distance, std::move(candidate));
  }
  std::sort(ranked.begin(), ranked.end());
  if (ranked.size() > count) ranked.resize(count);
  std::vector<std::string> names;
  names.reserve(ranked.size());
  for (auto& [other, distance, name] : ranked) names.push_back(std::move(name));
  return names;
}

}  // namespace shardplan
