// Where states live changes no bit: each class in host memory, in files and by halves, against the reference that knows no
// offload; what each tier holds is what the plan says.
//
// By default a sample of the grid; all of it with SHARDPLAN_TEST_ALL=1.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <tuple>

#include "base/error.h"
#include "offload/file_tier.h"
#include "runtime/cpu_device.h"
#include "tests/shard/training_run.h"
#include "tests/support/config_error.h"
#include "tests/support/io_uring.h"
#include "tests/support/run_ranks.h"
#include "tests/support/saved_state.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/whole_grid.h"

namespace shardplan::test {
namespace {

using test_support::TemporaryFolder;

constexpr std::array kPrecisions{"fp32", "bf16-mixed", "fp16-mixed", "bf16", "bf16-mixed-fp32grad", "bf16-fp32state"};
constexpr std::array kPlacements{"optimizer=cpu",
                                 "optimizer=file",
                                 "optimizer=cpu@0.5",
                                 "optimizer=file@0.5",
                                 "gradients=cpu",
                                 "gradients=cpu@0.5",
                                 "parameters=cpu",
                                 "parameters=cpu@0.5",
                                 "optimizer=cpu,gradients=cpu,parameters=cpu",
                                 "optimizer=file,gradients=cpu,parameters=cpu",
                                 "optimizer=file@0.5,gradients=cpu@0.5",
                                 "gradients=file",
                                 "gradients=file@0.5",
                                 "parameters=file",
                                 "parameters=file@0.5",
                                 "gradients=file,parameters=file",
                                 "optimizer=file,gradients=file,parameters=file",
                                 "optimizer=cpu,gradients=file@0.5,parameters=file",
                                 "optimizer=file@0.5,gradients=cpu,parameters=file@0.7"};

// Blocks so small that a buffer of the odd catalog has several.
Offload offload_of(const std::string& text) {
  Offload offload = parse_offload(text).offload;
  offload.block_elements = 2048;
  return offload;
}

Setup setup_of(const std::string& precision, std::uint64_t world, std::uint64_t replicas, int stage) {
  Setup setup;
  setup.policy = policy_named(precision);
  setup.world_size = world;
  setup.replicate = replicas;
  setup.stage = stage;
  setup.ema = true;
  return setup;
}

ZeroOptions options_of() {
  ZeroOptions options;
  options.groups = {{.match = "*bias", .values = {.learning_rate = 3e-3, .weight_decay = 0.0}},
                    {.match = "*", .values = {.learning_rate = 1e-3, .weight_decay = 0.1}}};
  options.clip_norm = 0.5;
  options.initial_values = synthetic_values;
  return options;
}

Script script_of(const Setup& setup, std::size_t steps) {
  Script script;
  script.seed = 3;
  script.micro_batches.assign(steps, setup.accumulation);
  return script;
}

// Whether a sample of about 140 runs has this one: of each stage and world every placement, of each precision most.
bool sampled(std::size_t placement, int stage, std::uint64_t world, std::size_t precision, bool accumulates) {
  return (7 * placement + 5 * static_cast<std::size_t>(stage) + 3 * world + 11 * precision + (accumulates ? 4 : 0)) %
             24 ==
         0;
}

// A part of the parameters can be elsewhere only where they are sharded.
bool can_be_planned(const Setup& setup) {
  return setup.offload.parameters.fraction == 1 || (setup.stage == 3 && shard_count(setup) > 1);
}

using Case = std::tuple<std::size_t, std::array<std::uint64_t, 2>>;
class OffloadTest : public ::testing::TestWithParam<Case> {};

TEST_P(OffloadTest, EveryPlacementEqualsTheReference) {
  const auto& [precision_index, shape] = GetParam();
  const char* const precision = kPrecisions[precision_index];
  const Catalog catalog = odd_catalog();
  for (const bool accumulates : {false, true}) {
    for (int stage = 0; stage < 4; ++stage) {
      auto setup = setup_of(precision, shape[0], shape[1], stage);
      setup.accumulation = accumulates ? 2 : 1;
      setup.cadence = stage < 2 && stage % 2 == 0 ? Cadence::step : Cadence::micro_batch;
      const Script script = script_of(setup, 3);
      std::optional<Trained> expected;
      for (std::size_t i = 0; i < kPlacements.size(); ++i) {
        setup.offload = {};
        if (!test_support::whole_grid() && !sampled(i, stage, shape[0], precision_index, accumulates)) continue;
        if (!expected) expected = run_reference(catalog, setup, options_of(), script);
        setup.offload = offload_of(kPlacements[i]);
        if (!can_be_planned(setup)) continue;
        setup.prefetch = i % 3;
        SCOPED_TRACE(fmt::format("{} world {} / {} A {} stage {} {}", precision, shape[0], shape[1], setup.accumulation,
                                 stage, kPlacements[i]));
        expect_run(catalog, setup, options_of(), script, *expected);
      }
    }
  }
}

std::string case_name(const ::testing::TestParamInfo<Case>& info) {
  std::string name = fmt::format("{}_{}_ranks_{}_replicas", kPrecisions[std::get<0>(info.param)],
                                 std::get<1>(info.param)[0], std::get<1>(info.param)[1]);
  for (char& letter : name) letter = letter == '-' ? '_' : letter;
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    Grid, OffloadTest,
    ::testing::Combine(::testing::Range(std::size_t{0}, kPrecisions.size()),
                       ::testing::Values(std::array<std::uint64_t, 2>{1, 1}, std::array<std::uint64_t, 2>{2, 1},
                                         std::array<std::uint64_t, 2>{3, 1}, std::array<std::uint64_t, 2>{4, 2})),
    case_name);

TEST(Offload, OptimizersOfEveryKindAndStagedRanks) {
  const Catalog catalog = odd_catalog();
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::sgd_momentum, OptimizerKind::lion,
                                   OptimizerKind::sgd, OptimizerKind::adam}) {
    for (const char* placement : {"optimizer=file", "optimizer=cpu,gradients=cpu,parameters=cpu",
                                  "optimizer=file,gradients=file,parameters=file"}) {
      auto setup = setup_of("bf16-mixed", 2, 1, 3);
      setup.optimizer = kind;
      setup.ema = kind == OptimizerKind::lion;
      setup.transport = Transport::staged;
      const Script script = script_of(setup, 2);
      const Trained expected = run_reference(catalog, setup, options_of(), script);
      setup.offload = offload_of(placement);
      SCOPED_TRACE(fmt::format("{} {}", states_of(kind).name, placement));
      expect_run(catalog, setup, options_of(), script, expected);
    }
  }
}

// A bf16 model that is updated in place with SGD has no state at all: nothing is in the file.
TEST(Offload, AModelWithoutStatesHasNoFile) {
  auto setup = setup_of("bf16", 2, 1, 1);
  setup.optimizer = OptimizerKind::sgd;
  setup.ema = false;
  const Catalog catalog = odd_catalog();
  const Script script = script_of(setup, 2);
  const Trained expected = run_reference(catalog, setup, options_of(), script);
  setup.offload = offload_of("optimizer=file");
  const StepPlan plan = make_step_plan(catalog, setup);
  EXPECT_EQ(plan.blocks.ring_slots, 0U);
  EXPECT_EQ(plan.file.bytes, 0_B);
  expect_run(catalog, setup, options_of(), script, expected);
}

// body(optimizer, world) on each rank of a plan, whose files are in a folder of their own.
void with_optimizers(const Catalog& catalog, const Setup& setup, const OffloadOptions& how,
                     const std::function<void(ZeroOptimizer&, Communicator&)>& body) {
  const StepPlan plan = make_step_plan(catalog, setup);
  const TemporaryFolder folder;
  CpuDevice cpu;
  run_ranks(static_cast<int>(setup.world_size), [&](Communicator& world) {
    ZeroOptions options = options_of();
    options.offload = how;
    options.offload.folder = folder.path();
    ZeroOptimizer optimizer(catalog, plan, cpu, {&world, &world}, options);
    body(optimizer, world);
  });
}

TEST(Offload, HoweverFilesAreReadAndWrittenTheBitsAreTheSame) {
  struct Way {
    int threads;
    bool direct;
    FileIo io = FileIo::pread;
  };
  std::vector<Way> ways{{0, true}, {0, false}, {1, true}, {1, false}, {5, true}, {5, false}};
  if (no_io_uring().empty()) ways.insert(ways.end(), {{0, true, FileIo::io_uring}, {5, false, FileIo::io_uring}});
  const Catalog catalog = odd_catalog();
  auto setup = setup_of("bf16-mixed", 1, 1, 0);
  const Script script = script_of(setup, 2);
  Trained expected = run_reference(catalog, setup, options_of(), script);
  setup.offload = offload_of("optimizer=file,gradients=file,parameters=file");
  for (const Way& way : ways) {
    const OffloadOptions how{.threads = way.threads, .in_flight = 20_KiB, .direct = way.direct, .io = way.io};
    with_optimizers(catalog, setup, how, [&](ZeroOptimizer& optimizer, Communicator&) {
      SyntheticClient client(script, setup, optimizer.plan().layout.units, 0);
      for (std::uint64_t step = 0; step < 2; ++step) client.run_step(optimizer, step);
      EXPECT_EQ(parameters_of(optimizer), expected.parameters);
    });
  }
}

// What one placement has saved, another one loads, and goes on with the same bits.
TEST(Offload, StateMovesBetweenPlacements) {
  const Catalog catalog = odd_catalog();
  for (const int stage : {0, 3}) {
    auto setup = setup_of("bf16-mixed", 2, 1, stage);
    const Script script = script_of(setup, 4);
    const Trained expected = run_reference(catalog, setup, options_of(), script);
    for (const auto& [from, to] :
         {std::pair{"optimizer=file", "optimizer=cpu"}, std::pair{"optimizer=cpu", "optimizer=file"},
          std::pair{"gradients=cpu", "optimizer=file,parameters=cpu"}, std::pair{"parameters=file", "gradients=file"},
          std::pair{"gradients=file", "optimizer=file,parameters=file"}}) {
      SCOPED_TRACE(fmt::format("stage {} from {} to {}", stage, from, to));
      SavedState saved(catalog);
      const auto with = [&](const char* placement, auto&& body) {
        setup.offload = offload_of(placement);
        with_optimizers(catalog, setup, {}, [&](ZeroOptimizer& optimizer, Communicator& world) {
          SyntheticClient client(script, setup, optimizer.plan().layout.units, world.rank());
          body(optimizer, client);
        });
      };
      with(from, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
        for (std::uint64_t step = 0; step < 2; ++step) client.run_step(optimizer, step);
        saved.save(optimizer);
      });
      EXPECT_EQ(saved.flaw(), "");
      with(to, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
        client.run_step(optimizer, 0);  // something else, which the load replaces
        saved.load(optimizer);
        for (std::uint64_t step = 2; step < 4; ++step) client.run_step(optimizer, step);
        EXPECT_EQ(parameters_of(optimizer), expected.parameters);
      });
    }
  }
}

// Steps of one micro-batch, of some, and of all that the plan has; one that is skipped.
TEST(Offload, SumsOfMicroBatchesPassAsOftenAsThereAreSome) {
  const Catalog catalog = odd_catalog();
  for (const int stage : {0, 1, 3}) {
    for (const Cadence cadence : {Cadence::step, Cadence::micro_batch}) {
      if (stage == 3 && cadence == Cadence::step) continue;
      for (const char* precision : {"bf16-mixed", "fp32"}) {
        auto setup = setup_of(precision, 2, 1, stage);
        setup.accumulation = 3;
        setup.cadence = cadence;
        Script script = script_of(setup, 5);
        script.micro_batches = {3, 1, 2, 3, 1};
        script.silent_unit = 3;
        script.poisons = {{.place = {.step = 2, .micro_batch = 1, .rank = 1, .unit = 3, .tensor = 0},
                           .value = std::numeric_limits<float>::infinity()}};
        const Trained expected = run_reference(catalog, setup, options_of(), script);
        ASSERT_TRUE(expected.reports[2].skipped);
        for (const char* placement : {"gradients=file", "optimizer=file,gradients=file@0.5,parameters=file"}) {
          SCOPED_TRACE(fmt::format("{} stage {} {} {}", precision, stage, name(cadence), placement));
          setup.offload = offload_of(placement);
          expect_run(catalog, setup, options_of(), script, expected);
        }
      }
    }
  }
}

TEST(Offload, ADiskWithoutRoomIsFoundByTheConstructor) {
  const Catalog catalog = odd_catalog();
  auto setup = setup_of("fp32", 1, 1, 0);
  setup.offload = offload_of("gradients=file");
  const StepPlan plan = make_step_plan(catalog, setup);
  CpuDevice cpu;
  run_ranks(1, [&](Communicator& world) {
    ZeroOptions options = options_of();
    options.offload.make_tier = [](const FileTierOptions& file) -> std::unique_ptr<ByteTier> {
      FileTierOptions larger = file;
      larger.path = (std::filesystem::temp_directory_path() / "shardplan-no-room").string();
      larger.bytes = Bytes{std::uint64_t{1} << 60};
      return std::make_unique<FileTier>(larger);
    };
    EXPECT_THROW(ZeroOptimizer(catalog, plan, cpu, {&world, &world}, options), OutOfMemory);
    options.offload.make_tier = nullptr;
    options.offload.folder = "/nowhere/at/all";
    EXPECT_THROW(ZeroOptimizer(catalog, plan, cpu, {&world, &world}, options), IoError);
  });
}

// Clients without units see parameters where they are; these are not on the device.
TEST(Offload, ParametersElsewhereTakeUnits) {
  const Catalog catalog = odd_catalog();
  auto setup = setup_of("fp32", 1, 1, 0);
  for (const char* placement : {"parameters=cpu", "parameters=file"}) {
    setup.offload = offload_of(placement);
    with_optimizers(catalog, setup, {}, [](ZeroOptimizer& optimizer, Communicator&) {
      EXPECT_THROW(optimizer.parameters(0), CheckFailure);
    });
  }
}

}  // namespace
}  // namespace shardplan::test
