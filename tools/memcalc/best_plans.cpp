#include "tools/memcalc/best_plans.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "base/text.h"

namespace shardplan::memcalc {
namespace {

struct Candidate {
  double seconds = 0;
  std::uint32_t structure = 0;
  std::uint32_t recomputation = 0;
  std::uint64_t micro_batch = 0;
};

class Search {
 public:
  Search(const SearchSpace& space, JointEvaluator& evaluator, Findings& findings)
      : space_(space), evaluator_(evaluator), findings_(findings), options_(space.any()) {}

  void list_candidates();
  void walk(std::uint64_t most);

 private:
  std::uint64_t recomputations() const { return space_.recomputations().size(); }
  // These ask about options_.
  bool rejected_whole(const std::vector<std::uint64_t>& micro_batches);
  const std::string& refused();
  void add_candidate(const Candidate& candidate);
  // Whether it fits; planned whole then, and accepted.
  bool look_at(const Candidate& candidate);
  bool look_at(std::uint64_t& too_large);

  const SearchSpace& space_;
  JointEvaluator& evaluator_;
  Findings& findings_;
  PlanOptions options_;  // the set-up that is looked at
  std::vector<Candidate> candidates_;
  // For each structure and recomputation: the smallest micro-batch that is known not to fit where gradients are accumulated.
  std::vector<std::uint64_t> too_large_;
  using Axes = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, bool, RecomputeKind>;
  std::map<Axes, std::string> refused_;
};

// Of set-ups that are alike in what a profile looks at.
const std::string& Search::refused() {
  const Parallelism& p = options_.setup.parallel;
  const Axes axes{p.tensor, p.context, p.expert, p.pipeline > 1, options_.client.recompute};
  const auto [entry, added] = refused_.try_emplace(axes);
  if (added) entry->second = evaluator_.refused(options_);
  return entry->second;
}

bool Search::rejected_whole(const std::vector<std::uint64_t>& micro_batches) {
  if (micro_batches.empty()) {
    findings_.reject(options_, Rejection::contradiction,
                     fmt::format("{} sequences are no whole micro-batches on {} data ranks", findings_.fit().sequences,
                                 data_parallel(options_.setup)),
                     recomputations());
    return true;
  }
  space_.set(options_, micro_batches.back(), space_.recomputations().back());
  const std::uint64_t all = recomputations() * micro_batches.size();
  try {
    validate(options_.setup);
    const Bytes least = evaluator_.least_states(options_);
    if (least <= findings_.capacity()) return false;
    findings_.reject(options_, Rejection::states, fmt::format("model states are {} or more", in_gb(least)), all);
  } catch (const ConfigError& error) {
    findings_.reject(options_, Rejection::contradiction, error.what(), all);
  }
  return true;
}

void Search::add_candidate(const Candidate& candidate) {
  if (std::string why = refused_interleaving(options_); !why.empty()) {
    return findings_.reject(options_, Rejection::contradiction, std::move(why));
  }
  try {
    candidates_.push_back(candidate);
    candidates_.back().seconds = evaluator_.time(options_).seconds();
    return;
  } catch (const ConfigError& error) {
    findings_.reject(options_, Rejection::unknown, error.what());
  } catch (const ArithmeticOverflow& error) {
    findings_.reject(options_, Rejection::unknown, fmt::format("is too large to be counted: {}", error.what()));
  }
  candidates_.pop_back();
}

void Search::list_candidates() {
  const std::vector<Structure>& structures = space_.structures();
  too_large_.assign(structures.size() * recomputations(), std::numeric_limits<std::uint64_t>::max());
  for (std::uint32_t s = 0; s < structures.size(); ++s) {
    space_.set(options_, structures[s]);
    const std::vector<std::uint64_t> sizes = space_.micro_batches(structures[s]);
    if (rejected_whole(sizes)) continue;
    for (std::uint32_t r = 0; r < recomputations(); ++r) {
      space_.set(options_, sizes.front(), space_.recomputations()[r]);
      if (const std::string& why = refused(); !why.empty()) {
        findings_.reject(options_, Rejection::unknown, why, sizes.size());
        continue;
      }
      for (const std::uint64_t size : sizes) {
        space_.set(options_, size, space_.recomputations()[r]);
        add_candidate({.seconds = 0, .structure = s, .recomputation = r, .micro_batch = size});
      }
    }
  }
  std::stable_sort(candidates_.begin(), candidates_.end(),
                   [](const Candidate& a, const Candidate& b) { return a.seconds < b.seconds; });
}

bool Search::look_at(std::uint64_t& too_large) {
  const bool accumulates = options_.setup.accumulation > 1;
  if (accumulates && options_.micro_batch >= too_large) {
    findings_.reject(options_, Rejection::memory, "a smaller micro-batch does not fit");
    return false;
  }
  const Bytes states = evaluator_.states(options_);
  if (states > findings_.capacity()) {
    findings_.reject(options_, Rejection::states, fmt::format("the engine alone needs {}", in_gb(states)));
    return false;
  }
  ++findings_.fit().evaluated;
  Bytes needed = evaluator_.needed(options_, findings_.capacity());
  if (needed > findings_.capacity()) {
    if (accumulates) too_large = options_.micro_batch;
    findings_.reject(options_, needed);
    return false;
  }
  needed = std::max(needed, evaluator_.planned(options_));
  if (needed > findings_.capacity()) {
    findings_.reject(options_, Rejection::memory,
                     fmt::format("needs {} with what the allocator reserves and the context takes", in_gb(needed)));
    return false;
  }
  findings_.accept(options_, needed, evaluator_.time(options_));
  return true;
}

bool Search::look_at(const Candidate& candidate) {
  space_.set(options_, space_.structures()[candidate.structure]);
  space_.set(options_, candidate.micro_batch, space_.recomputations()[candidate.recomputation]);
  try {
    return look_at(too_large_[candidate.structure * recomputations() + candidate.recomputation]);
  } catch (const UnknownActivations& error) {
    findings_.reject(options_, Rejection::unknown, error.what());
  } catch (const ConfigError& error) {
    findings_.reject(options_, Rejection::contradiction, error.what());
  } catch (const ArithmeticOverflow& error) {
    findings_.reject(options_, Rejection::unknown, fmt::format("is too large to be counted: {}", error.what()));
  }
  return false;
}

void Search::walk(std::uint64_t most) {
  std::uint64_t found = 0;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (look_at(candidates_[i])) ++found;
    if (found < most) continue;
    findings_.leave_slower(candidates_.size() - i - 1);
    return;
  }
}

}  // namespace

void find_best_plans(const SearchSpace& space, std::uint64_t most, JointEvaluator& evaluator, Findings& findings) {
  Search search(space, evaluator, findings);
  search.list_candidates();
  search.walk(most);
}

}  // namespace shardplan::memcalc
