// Offloaded ranks on virtual devices: what each tier holds is what the plan says, and the links cost what the cluster says.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <utility>

#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/presets.h"
#include "planner/offload.h"
#include "tools/simulate/simulation.h"

namespace shardplan {
namespace {

constexpr std::array kPlacements{"optimizer=cpu",
                                 "optimizer=file",
                                 "optimizer=file@0.5",
                                 "gradients=cpu@0.5",
                                 "parameters=cpu",
                                 "optimizer=cpu@0.3,gradients=cpu,parameters=cpu",
                                 "optimizer=file,gradients=cpu,parameters=cpu",
                                 "gradients=file",
                                 "optimizer=cpu,gradients=file@0.4,parameters=file",
                                 "optimizer=file,gradients=file,parameters=file"};

bool whole_grid() {
  return std::getenv("SHARDPLAN_TEST_ALL") != nullptr;
}

Setup setup_of(int stage, std::uint64_t world, const std::string& offload) {
  Setup setup;
  setup.world_size = world;
  setup.stage = stage;
  setup.policy = policy_named("bf16-mixed");
  if (!offload.empty()) setup.offload = parse_offload(offload).offload;
  return setup;
}

SimulationOptions options_of() {
  return {.cluster = require_cluster("h100", gpu_table({})), .work = {.tokens = 2048, .sequence = 2048}};
}

Simulation simulated(const Setup& setup, const SimulationOptions& options, const char* model = "gpt2") {
  const Model read = preset_model(model).value();
  return simulate(read, make_step_plan(read.catalog, setup), options);
}

void expect_plan(const char* name, const Setup& setup, const char* frozen = "") {
  Model model = preset_model(name).value();
  if (*frozen != 0) {
    ASSERT_GT(freeze(model.catalog, frozen), 0U);
  }
  const StepPlan plan = make_step_plan(model.catalog, setup);
  for (const SimulatedRank& rank : simulate(model, plan, options_of()).ranks) {
    ASSERT_EQ(rank.error, "");
    EXPECT_EQ(rank.arena, plan.device.bytes);
    EXPECT_EQ(rank.live_peak, plan.device.live_peak);
    EXPECT_EQ(rank.host_arena, plan.pinned.bytes);
    EXPECT_EQ(rank.host_live_peak, plan.pinned.live_peak);
    EXPECT_EQ(rank.file, plan.file.bytes);
    EXPECT_EQ(rank.file_live, plan.file.live_peak);
  }
}

TEST(OffloadedSimulation, EveryTierHoldsWhatThePlanSays) {
  for (const char* model : {"gpt2", "llama-2-7b"}) {
    for (const char* placement : kPlacements) {
      for (int stage = 0; stage <= 3; ++stage) {
        for (const std::uint64_t world : {1U, 2U, 8U, 24U}) {
          if (!whole_grid() && (world == 24 || (world == 1 && stage % 3 != 0))) continue;
          SCOPED_TRACE(fmt::format("{} stage {} world {} {}", model, stage, world, placement));
          expect_plan(model, setup_of(stage, world, placement));
        }
      }
    }
  }
  for (const int stage : {0, 3}) {
    expect_plan("gpt2", setup_of(stage, 2, "optimizer=file,gradients=file,parameters=file"), "*ln*");
    expect_plan("gpt2", setup_of(stage, 2, "parameters=file"), "*wte*");
  }
  auto setup = setup_of(2, 16, "optimizer=file@0.7,gradients=cpu");
  setup.replicate = 2;
  setup.accumulation = 3;
  expect_plan("gpt2", setup);
  setup.offload = parse_offload("optimizer=file@0.7,gradients=file@0.5").offload;
  expect_plan("gpt2", setup);
  setup.optimizer = OptimizerKind::sgd;  // no state beside the master
  setup.ema = true;
  expect_plan("gpt2", setup);
}

// One rank's update reads and writes 12 bytes of each state over the link, each way at the same time.
TEST(OffloadedSimulation, AnUpdateInHostMemoryTakesItsBytesOverTheLink) {
  SimulationOptions options = options_of();
  options.cluster.host = {.bytes_per_second = 10e9, .efficiency = 0.5, .latency_seconds = 0};
  const Model model = preset_model("gpt2").value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of(0, 1, "optimizer=cpu"));
  const double plain = simulated(setup_of(0, 1, ""), options).step_seconds;
  const double offloaded = simulate(model, plan, options).step_seconds;
  double bytes = 0;
  for (const Array& array : plan.pinned.arrays) {
    if (class_of(array.role) == MemoryClass::optimizer_states) {
      bytes += static_cast<double>((array.count * array.bytes).count());
    }
  }
  EXPECT_GT(bytes, 12 * 124e6);
  // The update alone took less than a hundredth of that.
  EXPECT_NEAR((offloaded - plain) / (bytes / 5e9), 1, 0.01);
}

// Reading, updating and writing overlap: a step takes what the slowest of them takes, and one block at its ends.
TEST(OffloadedSimulation, FilesAreReadAndWrittenWhileBlocksAreUpdated) {
  SimulationOptions options = options_of();
  const Model model = preset_model("gpt2").value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of(0, 1, "optimizer=file"));
  const double plain = simulated(setup_of(0, 1, ""), options).step_seconds;
  const auto bytes = static_cast<double>(plan.file.bytes.count());
  const auto block = static_cast<double>(plan.blocks.slot.count());
  for (const auto& [reads, writes] : {std::pair{2e9, 8e9}, {8e9, 2e9}, {2e9, 2e9}}) {
    options.cluster.disk = {.read_bytes_per_second = reads, .write_bytes_per_second = writes};
    const double seconds = simulate(model, plan, options).step_seconds - plain;
    const double slowest = bytes / std::min(reads, writes);
    EXPECT_GT(seconds, slowest - 0.01);
    EXPECT_LT(seconds, slowest + 2 * block / reads + 2 * block / writes + 0.02) << reads << " " << writes;
  }
}

// A step reads and writes what of a class passes, and while it computes: on a fast disk it takes hardly longer than on host
// memory; on a slow one what the slower of reading and writing takes.
TEST(OffloadedSimulation, UnitsPassTheDiskWhileOthersCompute) {
  SimulationOptions options = options_of();
  const auto seconds = [&](const char* placement, double reads, double writes) {
    options.cluster.disk = {.read_bytes_per_second = reads, .write_bytes_per_second = writes};
    return simulated(setup_of(3, 8, placement), options, "llama-2-7b").step_seconds;
  };
  const double shard = 2 * 6.74e9 / 8;  // bytes of a rank's gradients, and of its parameters
  struct Case {
    const char* placement;
    const char* host;
    double read;  // bytes in a step
    double written;
  };
  // Gradients: written by reductions, read by the norm and by the update. Parameters: read by each use, written by the update.
  for (const Case& each : {Case{"gradients=file", "gradients=cpu", 2 * shard, shard},
                           Case{"parameters=file", "parameters=cpu", 2 * shard, shard}}) {
    SCOPED_TRACE(each.placement);
    const double on_host = seconds(each.host, 1e9, 1e9);
    EXPECT_LT(seconds(each.placement, 100e9, 100e9), 1.15 * on_host + (each.read + each.written) / 100e9);
    for (const auto& [reads, writes] : {std::pair{1e9, 100e9}, {100e9, 1e9}, {1e9, 1e9}}) {
      const double on_disk = seconds(each.placement, reads, writes);
      const double slowest = std::max(each.read / reads, each.written / writes);
      EXPECT_GT(on_disk, 0.9 * slowest) << reads << " " << writes;
      EXPECT_LT(on_disk, 1.05 * (each.read / reads + each.written / writes) + on_host) << reads << " " << writes;
    }
  }
}

TEST(OffloadedSimulation, ParametersAndGradientsOverTheLinkCostTime) {
  SimulationOptions options = options_of();
  const auto seconds = [&](const char* placement, double rate) {
    options.cluster.host.bytes_per_second = rate;
    return simulated(setup_of(3, 8, placement), options, "llama-2-7b").step_seconds;
  };
  for (const char* placement : {"parameters=cpu", "gradients=cpu"}) {
    EXPECT_GT(seconds(placement, 1e9), seconds(placement, 50e9)) << placement;
    EXPECT_GE(seconds(placement, 50e9), seconds("", 50e9)) << placement;
  }
}

TEST(OffloadedSimulation, AKilledRankEndsInTheMiddleOfItsBlocks) {
  SimulationOptions options = options_of();
  const shardplan::Setup setup = setup_of(1, 2, "optimizer=file");
  const Simulation whole = simulated(setup, options);
  options.faults = {{.kind = FaultKind::kill, .rank = 1, .operation = whole.ranks[1].outcome.operations - 5}};
  const Simulation killed = simulated(setup, options);
  EXPECT_TRUE(killed.happened[0]);
  EXPECT_EQ(killed.ranks[1].error, "killed");
  EXPECT_NE(killed.ranks[0].error, "");
}

}  // namespace
}  // namespace shardplan
