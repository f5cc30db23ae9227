#include "tools/memcalc/uncounted.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

namespace shardplan::memcalc {
namespace {

struct Reason {
  std::string why;
  std::vector<std::string> roles;
};

// Each reason once, in the order of the kinds of ranks.
std::vector<Reason> reasons(const Planned& planned) {
  std::vector<Reason> found;
  for (std::size_t i = 0; i < planned.uncounted.size(); ++i) {
    const std::string& why = planned.uncounted[i];
    if (why.empty()) continue;
    auto same = std::find_if(found.begin(), found.end(), [&](const Reason& reason) { return reason.why == why; });
    if (same == found.end()) same = found.insert(same, Reason{.why = why, .roles = {}});
    same->roles.push_back(planned.report.ranks[i].role);
  }
  return found;
}

}  // namespace

void add_uncounted_notes(Planned& planned) {
  for (const Reason& reason : reasons(planned)) {
    const bool all = reason.roles.size() == planned.uncounted.size();
    const std::string whose = all ? "" : fmt::format(" of {}", fmt::join(reason.roles, ", "));
    planned.report.notes.push_back(fmt::format("activations{} are not counted: {}", whose, reason.why));
  }
}

std::string left_out(const Planned& planned) {
  const std::vector<RankReport>& ranks = planned.report.ranks;
  const bool any_counted = std::any_of(ranks.begin(), ranks.end(),
                                       [](const RankReport& rank) { return rank.device.peak_allocated.has_value(); });
  if (!any_counted) return {};
  std::vector<std::string> words;
  for (const Reason& reason : reasons(planned)) {
    words.push_back(fmt::format("activations of {} are not counted ({})", fmt::join(reason.roles, ", "), reason.why));
  }
  if (!words.empty()) return fmt::format("{}", fmt::join(words, ", "));
  std::vector<std::string> no_total;
  for (const RankReport& rank : ranks) {
    if (!rank.device.total) no_total.push_back(rank.role);
  }
  if (no_total.empty() || no_total.size() == ranks.size()) return {};
  return fmt::format("what {} reserves is not known", fmt::join(no_total, ", "));
}

}  // namespace shardplan::memcalc
