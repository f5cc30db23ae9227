// Faults by seed: every one happens; it ends ranks with an error that names the rank to look at, by their deadline, or
// changes nothing but times.
#include "tools/simulate/fault_spec.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/presets.h"
#include "tests/support/whole_grid.h"
#include "tools/simulate/simulation.h"

namespace shardplan {
namespace {

constexpr int kRanks = 4;

struct Undisturbed {
  StepPlan plan;
  Simulation simulation;
  std::vector<FaultRange> ranges;
};

class Faults : public testing::Test {
 protected:
  // Every stage, flat and with two replicas.
  Faults() {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const std::uint64_t replicate : {1U, 2U}) {
        auto setup = shardplan::Setup{};
        setup.world_size = kRanks;
        setup.replicate = replicate;
        setup.stage = stage;
        setup.policy = policy_named("bf16-mixed");
        Undisturbed run{make_step_plan(model.catalog, setup), {}, {}};
        run.simulation = simulate(model, run.plan, options);
        for (const SimulatedRank& rank : run.simulation.ranks) {
          run.ranges.push_back({rank.outcome.operations, rank.outcome.collectives, rank.arena});
        }
        runs.push_back(std::move(run));
      }
    }
  }

  const Model model = preset_model("gpt2").value();
  const SimulationOptions options{.cluster = require_cluster("h100", gpu_table({})),
                                  .work = {.tokens = 2048, .sequence = 2048},
                                  .gpus_per_node = 2};
  std::vector<Undisturbed> runs;
};

// It did all that it does without a fault, and knows where its time went.
void expect_ended_well(const SimulatedRank& rank, const SimulatedRank& undisturbed, const StepPlan& plan) {
  EXPECT_EQ(rank.outcome.operations, undisturbed.outcome.operations);
  EXPECT_EQ(rank.sent, undisturbed.sent);
  EXPECT_EQ(rank.arena, plan.device.bytes);
  EXPECT_EQ(rank.live_peak, plan.device.live_peak);
  EXPECT_GE(rank.step_seconds, undisturbed.step_seconds);
  EXPECT_EQ(rank.compute_seconds + rank.exposed_seconds + rank.waiting_seconds + rank.other_seconds, rank.step_seconds);
}

void expect_named(const SimulatedRank& rank, bool struck, const Fault& fault) {
  EXPECT_LE(rank.outcome.seconds, 200);
  const bool of_its_own = struck && (rank.outcome.killed || fault.kind == FaultKind::out_of_memory);
  EXPECT_TRUE(of_its_own || rank.error.find(fmt::format("rank {}", fault.rank)) != std::string::npos);
}

TEST_F(Faults, OfManySeedsHangNobodyAndAreNamed) {
  const std::uint64_t seeds = test_support::whole_grid() ? 10'000 : 300;
  int ended_well = 0;
  for (std::uint64_t seed = 0; seed < seeds; ++seed) {
    const Undisturbed& run = runs[seed % runs.size()];
    SimulationOptions disturbed = options;
    disturbed.faults = parse_faults({"random"}, kRanks, seed, [&] { return run.ranges; });
    const Fault& fault = disturbed.faults[0];
    const Simulation simulation = simulate(model, run.plan, disturbed);
    ASSERT_TRUE(simulation.happened[0]) << seed << ": " << describe(fault);
    const bool slows = fault.kind == FaultKind::slow_rank || fault.kind == FaultKind::slow_link;
    const bool may_end = !slows && (fault.kind != FaultKind::stall || fault.seconds >= 60);
    for (int i = 0; i < kRanks; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const SimulatedRank& rank = simulation.ranks[at];
      const bool struck = i == fault.rank;
      SCOPED_TRACE(fmt::format("seed {}: {}: rank {}: {}", seed, describe(fault), i, rank.error));
      EXPECT_EQ(rank.outcome.killed, struck && fault.kind == FaultKind::kill);
      if (rank.error.empty()) {
        expect_ended_well(rank, run.simulation.ranks[at], run.plan);
        EXPECT_FALSE(struck && may_end && fault.kind != FaultKind::stall);
        ++ended_well;
      } else {
        EXPECT_TRUE(may_end);
        expect_named(rank, struck, fault);
      }
    }
  }
  EXPECT_GT(ended_well, static_cast<int>(seeds) / 4);
}

// A rank of one replica is gone: its peers in the shard group miss it, and the ranks of the other replica, who meet it
// only for sums among replicas and in the agreement.
TEST_F(Faults, AKilledRankIsNamedByBothReplicas) {
  for (const Undisturbed& run : runs) {
    if (run.plan.setup.replicate == 1) continue;
    for (int culprit = 0; culprit < kRanks; ++culprit) {
      const std::uint64_t last = run.ranges[static_cast<std::size_t>(culprit)].operations;
      for (std::uint64_t operation = 1; operation <= last; operation += 1 + last / 7) {
        SimulationOptions disturbed = options;
        disturbed.faults = {{.kind = FaultKind::kill, .rank = culprit, .operation = operation}};
        const Simulation simulation = simulate(model, run.plan, disturbed);
        for (int i = 0; i < kRanks; ++i) {
          const SimulatedRank& rank = simulation.ranks[static_cast<std::size_t>(i)];
          SCOPED_TRACE(fmt::format("stage {}: {} killed at {} of {}: rank {}: {}", run.plan.setup.stage, culprit,
                                   operation, last, i, rank.error));
          ASSERT_EQ(rank.outcome.killed, i == culprit);
          if (rank.error.empty()) {
            expect_ended_well(rank, run.simulation.ranks[static_cast<std::size_t>(i)], run.plan);
          } else {
            expect_named(rank, i == culprit, disturbed.faults[0]);
          }
        }
      }
    }
  }
}

TEST(FaultSpec, RandomFaultsHaveSeedsOfTheirOwn) {
  int asked = 0;
  const auto undisturbed = [&] {
    ++asked;
    return std::vector<FaultRange>(8, {.operations = 1000, .collectives = 50, .bytes = 1_GB});
  };
  const auto two = parse_faults({"random", "kill,rank=2,operation=9", "random"}, 8, 5, undisturbed);
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(two[1], (Fault{.kind = FaultKind::kill, .rank = 2, .operation = 9}));
  EXPECT_NE(two[0], two[2]);
  EXPECT_EQ(two[2], parse_faults({"random"}, 8, 7, undisturbed)[0]);
  EXPECT_THROW(parse_faults({"random", "explode"}, 8, 5, undisturbed), ConfigError);
  EXPECT_EQ(asked, 2);  // not for what is wrong anyway
  parse_faults({"drop,rank=1,operation=3"}, 8, 5, undisturbed);
  EXPECT_EQ(asked, 2);
}

}  // namespace
}  // namespace shardplan
