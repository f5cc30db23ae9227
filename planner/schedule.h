// The schedule: in which step a unit is used, and in which step its gather is issued. Arena and programs are both
// made from it, so that they cannot disagree.
//
// Gathers are issued in the order of use, at most `prefetch` steps ahead, and never while the same unit is still
// gathered for an earlier use: the last unit's backward, a tied owner's second use. For a use at step k
//   issue(k) = max( k - prefetch,  last earlier use of that unit + 1,  issue of the use before )
// and since issue(j) <= j, only uses within `prefetch` steps before k can hold it back: irregular steps stay near the
// start, the turn-around and ties, and the rest of a run is one pattern.
#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <vector>

#include "planner/catalog.h"

namespace shardplan {

// One use of one unit: the step's own unit, or the owner of a tensor that it is tied to.
struct Use {
  std::uint64_t step = 0;
  std::uint64_t unit = 0;
  bool tied = false;
};

using Uses = boost::container::small_vector<Use, 4>;

class Schedule {
 public:
  // `run_starts`: the first unit of each run, and the number of units at the end. `parts`: units from which on something
  // else is done, inside runs: where what is in a file ends.
  Schedule(std::vector<std::uint64_t> run_starts, const std::vector<UnitTie>& ties, std::uint64_t prefetch,
           const std::vector<std::uint64_t>& parts = {});

  std::uint64_t units() const { return units_; }
  std::uint64_t steps() const { return 2 * units_; }
  std::uint64_t unit_of(std::uint64_t step) const { return step < units_ ? step : 2 * units_ - 1 - step; }
  std::uint64_t backward_of(std::uint64_t unit) const { return 2 * units_ - 1 - unit; }
  std::size_t run_of(std::uint64_t unit) const;

  // The uses at a step: its own unit first, then the owners it is tied to.
  Uses uses_at(std::uint64_t step) const;
  // The step at whose start the gather for a use is issued.
  std::uint64_t issue_step(const Use& use) const;
  // The uses whose gathers are issued at a step, in order.
  Uses issued_at(std::uint64_t step) const;

  // The backward step at which a unit's gradient is first written: its own, or that of the last unit tied to it.
  std::uint64_t first_gradient_step(std::uint64_t unit) const;

  // Whether one of units [first, end) owns a tensor of another unit or uses one of another's.
  bool has_ties(std::uint64_t first, std::uint64_t end) const;

  // How many steps from `step` on have the same pattern: 1 near starts of runs, the turn-around and ties.
  std::uint64_t regular_steps(std::uint64_t step) const;

 private:
  std::uint64_t earliest(const Use& use) const;

  std::vector<std::uint64_t> run_starts_;
  std::vector<UnitTie> ties_;
  std::vector<std::uint64_t> breaks_;  // steps at which the pattern can change, sorted
  std::uint64_t units_;
  std::uint64_t prefetch_;
};

}  // namespace shardplan
