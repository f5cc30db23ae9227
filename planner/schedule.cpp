#include "planner/schedule.h"

#include <algorithm>
#include <utility>

namespace shardplan {

Schedule::Schedule(std::vector<std::uint64_t> run_starts, const std::vector<UnitTie>& ties, std::uint64_t prefetch,
                   const std::vector<std::uint64_t>& parts)
    : run_starts_(std::move(run_starts)), ties_(ties), units_(run_starts_.back()), prefetch_(prefetch) {
  for (const std::vector<std::uint64_t>* units : {&std::as_const(run_starts_), &parts}) {
    for (const std::uint64_t unit : *units) {
      breaks_.push_back(unit);
      breaks_.push_back(2 * units_ - unit);
    }
  }
  for (const UnitTie& tie : ties_) {
    for (const std::uint64_t unit : {tie.unit, tie.owner}) {
      breaks_.insert(breaks_.end(), {unit, unit + 1, backward_of(unit), backward_of(unit) + 1});
    }
  }
  std::sort(breaks_.begin(), breaks_.end());
  breaks_.erase(std::unique(breaks_.begin(), breaks_.end()), breaks_.end());
}

std::size_t Schedule::run_of(std::uint64_t unit) const {
  const auto after = std::upper_bound(run_starts_.begin(), run_starts_.end(), unit);
  return static_cast<std::size_t>(after - run_starts_.begin()) - 1;
}

Uses Schedule::uses_at(std::uint64_t step) const {
  const std::uint64_t unit = unit_of(step);
  Uses uses{{step, unit, false}};
  for (const UnitTie& tie : ties_) {
    if (tie.unit == unit) uses.push_back({step, tie.owner, true});
  }
  return uses;
}

std::uint64_t Schedule::earliest(const Use& use) const {
  std::uint64_t step = use.step > prefetch_ ? use.step - prefetch_ : 0;
  const auto held_until = [&](std::uint64_t earlier) {
    if (earlier < use.step) step = std::max(step, earlier + 1);
  };
  held_until(use.unit);
  held_until(backward_of(use.unit));
  for (const UnitTie& tie : ties_) {
    if (tie.owner != use.unit) continue;
    held_until(tie.unit);
    held_until(backward_of(tie.unit));
  }
  return step;
}

std::uint64_t Schedule::issue_step(const Use& use) const {
  std::uint64_t issue = 0;
  for (std::uint64_t step = use.step > prefetch_ ? use.step - prefetch_ : 0; step < use.step; ++step) {
    for (const Use& before : uses_at(step)) issue = std::max(issue, earliest(before));
  }
  for (const Use& before : uses_at(use.step)) {
    issue = std::max(issue, earliest(before));
    if (before.unit == use.unit) break;
  }
  return issue;
}

Uses Schedule::issued_at(std::uint64_t step) const {
  Uses issued;
  for (std::uint64_t ahead = step; ahead <= step + prefetch_ && ahead < steps(); ++ahead) {
    for (const Use& use : uses_at(ahead)) {
      if (issue_step(use) == step) issued.push_back(use);
    }
  }
  return issued;
}

std::uint64_t Schedule::first_gradient_step(std::uint64_t unit) const {
  std::uint64_t first = backward_of(unit);
  for (const UnitTie& tie : ties_) {
    if (tie.owner == unit) first = std::min(first, backward_of(tie.unit));
  }
  return first;
}

bool Schedule::has_ties(std::uint64_t first, std::uint64_t end) const {
  const auto inside = [&](std::uint64_t unit) { return first <= unit && unit < end; };
  return std::any_of(ties_.begin(), ties_.end(),
                     [&](const UnitTie& tie) { return inside(tie.unit) || inside(tie.owner); });
}

std::uint64_t Schedule::regular_steps(std::uint64_t step) const {
  // A step looks `prefetch` steps ahead for gathers and two back for reductions, and a break disturbs the gathers of
  // the `prefetch` steps behind it.
  const std::uint64_t margin = std::max<std::uint64_t>(prefetch_, 2) + 1;
  const auto next = std::upper_bound(breaks_.begin(), breaks_.end(), step);
  if (next == breaks_.end() || next == breaks_.begin()) return 1;
  if (step - *(next - 1) < margin || *next - step <= margin) return 1;
  return *next - margin - step;
}

}  // namespace shardplan
