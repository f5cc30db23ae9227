#include "planner/schedule.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "tests/support/property.h"

namespace shardplan {
namespace {

struct ScheduleCase {
  std::vector<std::uint64_t> run_starts;
  std::vector<UnitTie> ties;
  std::uint64_t prefetch = 0;

  Schedule schedule() const { return {run_starts, ties, prefetch}; }
};

void showValue(const ScheduleCase& drawn, std::ostream& out) {
  out << "run starts";
  for (const std::uint64_t start : drawn.run_starts) out << ' ' << start;
  out << ", ties";
  for (const UnitTie& tie : drawn.ties) out << ' ' << tie.unit << "->" << tie.owner;
  out << ", prefetch " << drawn.prefetch;
}

rc::Gen<ScheduleCase> any_schedule(std::uint64_t longest_run) {
  return rc::gen::exec([longest_run] {
    ScheduleCase drawn;
    std::uint64_t units = 0;
    const std::size_t runs = *rc::gen::inRange<std::size_t>(0, 6);
    for (std::size_t i = 0; i < runs; ++i) {
      drawn.run_starts.push_back(units);
      units += *rc::gen::oneOf(rc::gen::just<std::uint64_t>(1), rc::gen::inRange<std::uint64_t>(1, longest_run + 1));
    }
    drawn.run_starts.push_back(units);
    drawn.prefetch = *rc::gen::inRange<std::uint64_t>(0, 6);
    std::set<std::pair<std::uint64_t, std::uint64_t>> ties;
    const std::size_t wanted = units < 2 ? 0 : *rc::gen::inRange<std::size_t>(0, 5);
    for (std::size_t i = 0; i < wanted; ++i) {
      const std::uint64_t unit = *rc::gen::inRange<std::uint64_t>(1, units);
      ties.emplace(unit, *rc::gen::inRange<std::uint64_t>(0, unit));
    }
    for (const auto& [unit, owner] : ties) drawn.ties.push_back({unit, owner});
    return drawn;
  });
}

// All uses of a micro-batch in order.
std::vector<Use> all_uses(const Schedule& schedule) {
  std::vector<Use> uses;
  for (std::uint64_t step = 0; step < schedule.steps(); ++step) {
    for (const Use& use : schedule.uses_at(step)) uses.push_back(use);
  }
  return uses;
}

// A queue of uses: at the start of each step, the head is issued while it is near enough and its unit is not held;
// at the end of a step, what it used is given back.
std::vector<std::uint64_t> simulated_issue_steps(const Schedule& schedule, std::uint64_t prefetch) {
  const std::vector<Use> uses = all_uses(schedule);
  std::vector<std::uint64_t> issued;
  std::set<std::uint64_t> held;
  for (std::uint64_t step = 0; step < schedule.steps(); ++step) {
    while (issued.size() < uses.size()) {
      const Use& head = uses[issued.size()];
      if (head.step > step + prefetch || held.contains(head.unit)) break;
      held.insert(head.unit);
      issued.push_back(step);
    }
    for (const Use& use : schedule.uses_at(step)) held.erase(use.unit);
  }
  return issued;
}

TEST(Schedule, UsesAreAUnitAndItsOwners) {
  const Schedule schedule({0, 1, 4, 5}, {{4, 0}, {4, 2}}, 1);
  EXPECT_EQ(schedule.units(), 5U);
  EXPECT_EQ(schedule.steps(), 10U);
  for (const std::uint64_t step : {4U, 5U}) {
    const Uses uses = schedule.uses_at(step);
    ASSERT_EQ(uses.size(), 3U);
    EXPECT_EQ(uses[0].unit, 4U);
    EXPECT_FALSE(uses[0].tied);
    EXPECT_EQ(uses[1].unit, 0U);
    EXPECT_TRUE(uses[1].tied);
    EXPECT_EQ(uses[2].unit, 2U);
  }
  EXPECT_EQ(schedule.uses_at(9).size(), 1U);
  EXPECT_EQ(schedule.unit_of(9), 0U);
}

TEST(Schedule, TiesOfOneUnitAreUsedInOrderAndHeldOnce) {
  // Unit 1 uses unit 0's tensor a step after unit 0 used it: its gather waits, and so do all that follow.
  const Schedule schedule({0, 1, 2, 3}, {{1, 0}}, 2);
  EXPECT_EQ(schedule.issue_step({0, 0, false}), 0U);
  EXPECT_EQ(schedule.issue_step({1, 1, false}), 0U);
  EXPECT_EQ(schedule.issue_step({1, 0, true}), 1U);
  EXPECT_EQ(schedule.issue_step({2, 2, false}), 1U);
  EXPECT_EQ(schedule.issue_step({3, 2, false}), 3U);  // the turn-around
}

TEST(Schedule, GradientsOfAnOwnerBeginWithTheLastUnitTiedToIt) {
  const Schedule schedule({0, 1, 4, 5}, {{2, 0}, {4, 0}, {4, 2}}, 1);
  EXPECT_EQ(schedule.first_gradient_step(0), schedule.backward_of(4));
  EXPECT_EQ(schedule.first_gradient_step(2), schedule.backward_of(4));
  EXPECT_EQ(schedule.first_gradient_step(1), schedule.backward_of(1));
}

TEST(Schedule, IssueStepsAreThoseOfAQueue) {
  test_support::check_property(1000, [] {
    const ScheduleCase drawn = *any_schedule(7);
    const Schedule schedule = drawn.schedule();
    const std::vector<std::uint64_t> expected = simulated_issue_steps(schedule, drawn.prefetch);
    const std::vector<Use> uses = all_uses(schedule);
    RC_ASSERT(expected.size() == uses.size());
    for (std::size_t i = 0; i < uses.size(); ++i) RC_ASSERT(schedule.issue_step(uses[i]) == expected[i]);
  });
}

TEST(Schedule, EachUseIsIssuedOnce) {
  test_support::check_property(500, [] {
    const ScheduleCase drawn = *any_schedule(7);
    const Schedule schedule = drawn.schedule();
    std::vector<Use> issued;
    for (std::uint64_t step = 0; step < schedule.steps(); ++step) {
      for (const Use& use : schedule.issued_at(step)) issued.push_back(use);
    }
    const std::vector<Use> uses = all_uses(schedule);
    RC_ASSERT(issued.size() == uses.size());
    for (std::size_t i = 0; i < uses.size(); ++i) {
      RC_ASSERT(issued[i].step == uses[i].step);
      RC_ASSERT(issued[i].unit == uses[i].unit);
    }
  });
}

TEST(Schedule, FirstGradientStepIsTheFirstBackwardThatWrites) {
  test_support::check_property(500, [] {
    const ScheduleCase drawn = *any_schedule(7);
    const Schedule schedule = drawn.schedule();
    std::map<std::uint64_t, std::uint64_t> first;
    for (std::uint64_t step = schedule.steps(); step-- > schedule.units();) {
      for (const Use& use : schedule.uses_at(step)) first[use.unit] = step;
    }
    for (const auto& [unit, step] : first) RC_ASSERT(schedule.first_gradient_step(unit) == step);
  });
}

// Everything about a step that a program is made of, units and steps relative to the step's own: equal texts are
// one pattern.
std::string step_pattern(const Schedule& schedule, const ScheduleCase& drawn, std::uint64_t step) {
  const std::uint64_t unit = schedule.unit_of(step);
  const bool backward = step >= schedule.units();
  std::string pattern = backward ? "backward" : "forward";
  // A folded segment moves every unit by the same stride as the step's own.
  const auto add = [&](const Use& use) {
    pattern +=
        fmt::format(" {}{:+}:{:+}@{}", use.tied ? "tied" : "own",
                    static_cast<std::int64_t>(use.unit) - static_cast<std::int64_t>(unit),
                    static_cast<std::int64_t>(use.step) - static_cast<std::int64_t>(step), schedule.run_of(use.unit));
  };
  for (const Use& use : schedule.uses_at(step)) add(use);
  pattern += " issues";
  for (const Use& use : schedule.issued_at(step)) add(use);
  // Reductions of the two steps before, which the step may wait for.
  for (std::uint64_t back = 1; back <= 2 && back <= step; ++back) {
    const std::uint64_t before = schedule.unit_of(step - back);
    pattern +=
        fmt::format(" after {}@{}", step - back >= schedule.units() ? "backward" : "forward", schedule.run_of(before));
  }
  const bool owner =
      std::any_of(drawn.ties.begin(), drawn.ties.end(), [&](const UnitTie& tie) { return tie.owner == unit; });
  return pattern + (owner ? " owner" : "") + fmt::format(" prefetch {}", drawn.prefetch);
}

TEST(Schedule, RegularStepsAreAlike) {
  test_support::check_property(1000, [] {
    const ScheduleCase drawn = *any_schedule(30);
    const Schedule schedule = drawn.schedule();
    for (std::uint64_t step = 0; step < schedule.steps(); ++step) {
      const std::uint64_t regular = schedule.regular_steps(step);
      RC_ASSERT(regular >= 1U);
      RC_ASSERT(step + regular <= schedule.steps());
      const std::string pattern = step_pattern(schedule, drawn, step);
      for (std::uint64_t i = 1; i < regular; ++i) RC_ASSERT(step_pattern(schedule, drawn, step + i) == pattern);
    }
  });
}

TEST(Schedule, ALongRunCostsAsMuchAsAShortOne) {
  const auto patterns = [](std::uint64_t blocks, std::uint64_t prefetch) {
    const Schedule schedule({0, 1, 1 + blocks, 2 + blocks}, {{1 + blocks, 0}}, prefetch);
    std::uint64_t count = 0;
    for (std::uint64_t step = 0; step < schedule.steps(); step += schedule.regular_steps(step)) ++count;
    return count;
  };
  for (std::uint64_t prefetch = 0; prefetch <= 4; ++prefetch) {
    EXPECT_EQ(patterns(40, prefetch), patterns(1'000'000'000, prefetch));
    EXPECT_LE(patterns(40, prefetch), 60U);
  }
}

}  // namespace
}  // namespace shardplan
