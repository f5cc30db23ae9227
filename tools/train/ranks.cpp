#include "tools/train/ranks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "base/error.h"

namespace shardplan::train {

std::span<const RankKind> rank_kinds() {
  static const std::array kinds{local_ranks(), shared_ranks(), mpi_ranks(), mpi_shared_ranks()};
  return kinds;
}

const RankKind& rank_kind_named(std::string_view name) {
  const std::span<const RankKind> kinds = rank_kinds();
  const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const RankKind& kind) { return kind.name == name; });
  if (found != kinds.end()) return *found;
  std::vector<std::string_view> names;
  for (const RankKind& kind : kinds) names.push_back(kind.name);
  throw ConfigError("--comm", "", fmt::format("'{}' is not known: expected {}", name, fmt::join(names, " or ")));
}

}  // namespace shardplan::train
