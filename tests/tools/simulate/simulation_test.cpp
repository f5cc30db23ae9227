// The optimizer on virtual ranks holds and sends what the planner says, on every rank.
#include "tools/simulate/simulation.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/presets.h"
#include "planner/report.h"
#include "tests/support/whole_grid.h"

namespace shardplan {
namespace {

struct Case {
  const char* model;
  int stage;
  std::uint64_t world;
  std::uint64_t replicate = 1;
  std::uint64_t accumulation = 1;
};

Setup setup_of(const Case& c) {
  Setup setup;
  setup.world_size = c.world;
  setup.replicate = c.replicate;
  setup.stage = c.stage;
  setup.accumulation = c.accumulation;
  setup.policy = policy_named("bf16-mixed");
  return setup;
}

SimulationOptions options_of(std::uint64_t gpus_per_node = 8) {
  return {.cluster = require_cluster("h100", gpu_table({})),
          .work = {.tokens = 2048, .sequence = 2048},
          .gpus_per_node = gpus_per_node};
}

void expect_plan(const Case& c) {
  SCOPED_TRACE(fmt::format("{} stage {} world {} replicate {}", c.model, c.stage, c.world, c.replicate));
  const Model model = preset_model(c.model).value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of(c));
  const Report report = report_shardplan(model.catalog, plan);
  const Simulation simulation = simulate(model, plan, options_of());
  ASSERT_EQ(simulation.ranks.size(), c.world);
  Bytes most;
  Bytes sent;
  for (const SimulatedRank& rank : simulation.ranks) {
    ASSERT_EQ(rank.error, "");
    ASSERT_EQ(rank.arena, plan.device.bytes);
    ASSERT_EQ(rank.live_peak, plan.device.live_peak);
    ASSERT_LE(rank.sent, report.traffic.total());
    ASSERT_GT(rank.step_seconds, 0);
    most = std::max(most, rank.sent);
    sent += rank.sent;
  }
  // What the calls really sent; replicas that share few granules send less than the one that sends most.
  EXPECT_EQ(most, report.traffic.total());
  EXPECT_TRUE(c.replicate > 1 || sent == c.world * most);
  EXPECT_EQ(simulation.sent.sum(), sent);
}

TEST(Simulation, EveryRankHoldsAndSendsWhatThePlanSays) {
  for (const char* model : {"gpt2", "llama-2-7b", "deepseek-v3", "t5-small"}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const std::uint64_t world : {1U, 2U, 8U, 24U}) expect_plan({model, stage, world});
    }
  }
  // Several towers, blocks that differ in what has no tensors, experts in every other layer.
  for (const char* model : {"sd3-medium-pipeline", "llama-4-scout-17b-16e", "chameleon-7b", "jamba-v0.1"}) {
    expect_plan({model, 3, 4});
  }
  expect_plan({"gpt2", 3, 64, 8});
  expect_plan({"gpt2", 2, 16, 2, 3});
  expect_plan({"gpt2", 3, 12});
  expect_plan({"gpt2", 1, 16, 1, 2});
}

// Kernel for kernel the same as real ranks: planned == measured there too (tools/train), so all three agree.
TEST(Simulation, EveryPresetAtEveryStageUpTo4096Ranks) {
  if (!test_support::whole_grid()) return;
  for (const Preset& preset : presets()) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const std::uint64_t world : {1U, 3U, 8U, 64U, 512U}) {
        expect_plan({preset.name.c_str(), stage, world});
        if (world == 64) expect_plan({preset.name.c_str(), stage, world, 8});
      }
    }
  }
  for (int stage = 0; stage <= 3; ++stage) expect_plan({"llama-2-7b", stage, 4096});
}

TEST(Simulation, PrefetchHidesGathersAndSmallNodesCostTime) {
  const Model model = preset_model("llama-2-7b").value();
  const auto seconds = [&](std::uint64_t prefetch, std::uint64_t gpus_per_node) {
    auto setup = setup_of({"llama-2-7b", 3, 16});
    setup.prefetch = prefetch;
    const StepPlan plan = make_step_plan(model.catalog, setup);
    return simulate(model, plan, options_of(gpus_per_node)).step_seconds;
  };
  EXPECT_LT(seconds(1, 8), seconds(0, 8));
  EXPECT_LE(seconds(1, 16), seconds(1, 8));
  EXPECT_LT(seconds(1, 8), seconds(1, 1));
}

// All that was told, to compare runs.
class TextTrace final : public VirtualTrace {
 public:
  void work(int rank, std::size_t stream, std::string_view what, Bytes bytes, double begin, double end) override {
    text += fmt::format("{} {} {} {} {} {}\n", rank, stream, what, bytes.count(), begin, end);
  }
  void taken(int rank, std::uint64_t offset, Bytes bytes, std::string_view purpose, double time) override {
    text += fmt::format("{} +{} {} {} {}\n", rank, offset, bytes.count(), purpose, time);
  }
  void given_back(int rank, std::uint64_t offset, Bytes bytes, double time) override {
    text += fmt::format("{} -{} {} {}\n", rank, offset, bytes.count(), time);
  }
  void waited(int rank, std::size_t stream, std::string_view what, int last, double begin, double end) override {
    text += fmt::format("{} {} waits in {} for {} {} {}\n", rank, stream, what, last, begin, end);
  }
  void fault(const Fault& fault, double time) override {
    text += fmt::format("fault {} {} {}\n", name(fault.kind), fault.rank, time);
  }
  std::string text;
};

TEST(Simulation, FibersAndThreadsTellTheSame) {
  const Model model = preset_model("gpt2").value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of({"gpt2", 3, 8, 2}));
  std::vector<std::string> texts;
  for (const bool threads : {virtual_ranks_are_threads(), true, virtual_ranks_are_threads()}) {
    TextTrace trace;
    SimulationOptions options = options_of();
    options.threads = threads;
    options.trace = &trace;
    options.faults = {{.kind = FaultKind::slow_rank, .rank = 3, .operation = 10, .factor = 2}};
    simulate(model, plan, options);
    texts.push_back(std::move(trace.text));
  }
  EXPECT_GT(texts[0].size(), 10000U);
  EXPECT_TRUE(texts[0] == texts[1]);
  EXPECT_TRUE(texts[0] == texts[2]);
}

TEST(Simulation, ASlowRankDiffersFromTheOthersAndHoldsThemUp) {
  const Model model = preset_model("gpt2").value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of({"gpt2", 3, 8}));
  const Simulation even = simulate(model, plan, options_of());
  SimulationOptions options = options_of();
  options.faults = {{.kind = FaultKind::slow_rank, .rank = 5, .operation = 1, .factor = 3}};
  const Simulation slowed = simulate(model, plan, options);
  EXPECT_EQ(even.operations, slowed.operations);
  EXPECT_GT(slowed.step_seconds, 2 * even.step_seconds);
  for (int rank = 0; rank < 8; ++rank) {
    const VirtualOutcome& outcome = slowed.ranks[static_cast<std::size_t>(rank)].outcome;
    if (rank == 5) {
      EXPECT_EQ(outcome.waiting_seconds, 0);
    } else {
      EXPECT_GT(outcome.waiting_seconds, 0);
    }
  }
}

// A client that leaves the order of the plan is told what was expected, before anybody waits for it in vain.
TEST(Simulation, AClientThatDivergesIsCaughtAtItsFirstDifferentCall) {
  const Model model = preset_model("gpt2").value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of({"gpt2", 3, 4}));
  SimulationOptions options = options_of();
  options.unit_called = [](int rank, std::uint64_t unit) { return rank == 2 && unit == 5 ? 6 : unit; };
  const Simulation simulation = simulate(model, plan, options);
  EXPECT_NE(simulation.ranks[2].error.find("enter(forward 6): the plan's next operation is forward 5"),
            std::string::npos)
      << simulation.ranks[2].error;
  for (const int rank : {0, 1, 3}) {
    const std::string& error = simulation.ranks[static_cast<std::size_t>(rank)].error;
    EXPECT_NE(error.find("rank 2"), std::string::npos) << error;
  }
}

TEST(Simulation, OutOfMemoryNamesTheBytes) {
  const Model model = preset_model("gpt2").value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of({"gpt2", 3, 4}));
  SimulationOptions options = options_of();
  options.faults = {{.kind = FaultKind::out_of_memory, .rank = 1, .bytes = plan.device.bytes - Bytes{1}}};
  const Simulation simulation = simulate(model, plan, options);
  EXPECT_NE(simulation.ranks[1].error.find(std::to_string(plan.device.bytes.count())), std::string::npos)
      << simulation.ranks[1].error;
  EXPECT_NE(simulation.ranks[0].error.find("rank 1"), std::string::npos) << simulation.ranks[0].error;
}

// Where the time of each rank went adds up to its step, to the last bit.
TEST(Simulation, ThePartsOfAStepAddUpToIt) {
  const Model model = preset_model("gpt2").value();
  for (const Case& c : {Case{"gpt2", 0, 16}, Case{"gpt2", 3, 16}, Case{"gpt2", 3, 16, 2}, Case{"gpt2", 2, 16, 2, 3}}) {
    const StepPlan plan = make_step_plan(model.catalog, setup_of(c));
    SimulationOptions options = options_of(4);
    options.steps = 2;
    options.faults = {{.kind = FaultKind::slow_rank, .rank = 3, .operation = 40, .factor = 1.7},
                      {.kind = FaultKind::stall, .rank = 5, .operation = 90, .seconds = 0.01},
                      {.kind = FaultKind::slow_link, .rank = 9, .operation = 50, .factor = 1.3}};
    for (const SimulatedRank& rank : simulate(model, plan, options).ranks) {
      ASSERT_EQ(rank.error, "");
      ASSERT_EQ(rank.compute_seconds + rank.exposed_seconds + rank.waiting_seconds + rank.other_seconds,
                rank.step_seconds);
      ASSERT_GE(rank.hidden_seconds(), 0);
      ASSERT_GT(rank.exposed_seconds, 0);
    }
  }
}

// Eight GPUs at one adapter: a group that has one of them moves alone eight times as fast as its share; and eight such
// groups at once take as long as if each had its share.
TEST(Simulation, GroupsShareTheAdaptersOfANode) {
  const Cluster cluster = require_cluster("h100-ethernet", gpu_table({}));
  ASSERT_EQ(cluster.gpus_per_adapter, 8U);
  const ClusterCosts costs(cluster, 8);
  const GroupShape replicas{.ranks = 2, .nodes = 2, .ranks_per_node = 1, .ranks_per_adapter = 1};
  const CollectivePrice alone = costs.collective(VirtualCollective::all_gather, 800_MB, replicas);
  EXPECT_EQ(alone.network_use, 1);
  EXPECT_EQ(alone.node_use, 0);
  EXPECT_EQ(alone.network_share, 1);
  const double share = cost_of(CollectiveKind::all_gather, 400_MB, {1, 2}, cluster).byte_seconds;
  EXPECT_NEAR(alone.seconds - alone.start_seconds, share / 8, 1e-9);
  // All of them in one group have what they had.
  const GroupShape all{.ranks = 16, .nodes = 2, .ranks_per_node = 8, .ranks_per_adapter = 8};
  EXPECT_EQ(costs.collective(VirtualCollective::all_gather, 800_MB, all).seconds,
            cost_of(CollectiveKind::all_gather, 50_MB, {8, 2}, cluster).seconds);
  // Adapters do not span nodes.
  EXPECT_EQ(gpus_per_adapter(cluster, 4), 4U);
  EXPECT_EQ(gpus_per_adapter(cluster, 6), 2U);
}

// Replicas of different shards move in step: at one adapter, each alone would be eight times as fast, and all of them
// together take as long as with an adapter of its own for each share.
TEST(Simulation, ReplicasInStepTakeTheirSharesOfAnAdapter) {
  const Model model = preset_model("gpt2").value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of({"gpt2", 2, 16, 2}));
  SimulationOptions options = options_of();
  options.cluster = require_cluster("h100-ethernet", gpu_table({}));
  const double shared = simulate(model, plan, options).step_seconds;
  options.cluster.gpus_per_adapter = 1;
  const double own = simulate(model, plan, options).step_seconds;
  EXPECT_NEAR(shared, own, 1e-4 * own);
  EXPECT_GT(own, 2 * simulate(model, plan, options_of()).step_seconds);
}

}  // namespace
}  // namespace shardplan
