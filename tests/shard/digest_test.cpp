// A stage changes where bytes live, never what they are: every stage, prefetch depth and cadence against one
// single-threaded reference, on a catalog that has every odd thing in it.
//
// By default a sample of the grid; all of it with SHARDPLAN_TEST_ALL=1.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <string>
#include <tuple>

#include "tests/shard/training_run.h"
#include "tests/support/whole_grid.h"

namespace shardplan::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

ZeroOptions options_for(const std::string& precision, std::uint64_t salt) {
  ZeroOptions options;
  options.groups = {{.match = "*bias", .values = {.learning_rate = 3e-3, .weight_decay = 0.0}},
                    {.match = "layers.1.*", .values = {.learning_rate = 2e-3, .beta1 = 0.8, .beta2 = 0.97}},
                    {.match = "*", .values = {.learning_rate = 1e-3, .weight_decay = 0.1}}};
  options.clip_norm = 0.5;
  options.initial_values = synthetic_values;
  if (precision == "fp16-mixed") {
    constexpr std::array kRules{LossScaleRule::torch, LossScaleRule::deepspeed, LossScaleRule::megatron};
    options.loss_scaling = default_scaling(kRules[salt % kRules.size()]);
    options.loss_scaling.initial = 16384;  // three uses of a tied tensor stay finite
    options.loss_scaling.window = 2;
  }
  return options;
}

// Steps of A micro-batches, one of them short; the fp16 ones overflow once on one rank.
Script script_for(const Setup& setup, std::uint64_t seed) {
  Script script;
  script.seed = seed;
  script.silent_unit = 3;
  script.micro_batches.assign(5, setup.accumulation);
  script.micro_batches[3] = setup.accumulation == 1 ? 1 : setup.accumulation - 1;
  if (setup.policy.name == "fp16-mixed") {
    const auto last_rank = static_cast<int>(setup.world_size) - 1;
    script.poisons = {{{.step = 1, .micro_batch = 0, .rank = last_rank, .unit = 8, .tensor = 0}, kInfinity},
                      {{.step = 4, .micro_batch = 0, .rank = 0, .unit = 1, .tensor = 0}, -kInfinity}};
  }
  return script;
}

using WorldShape = std::array<std::uint64_t, 2>;  // ranks, replicas
constexpr std::array<OptimizerKind, 5> kOptimizers{OptimizerKind::adamw, OptimizerKind::sgd_momentum,
                                                   OptimizerKind::lion, OptimizerKind::sgd, OptimizerKind::adam};

using Case = std::tuple<std::string, WorldShape>;
class DigestTest : public ::testing::TestWithParam<Case> {};

Setup setup_of(const Case& drawn) {
  Setup setup;
  setup.policy = policy_named(std::get<0>(drawn));
  setup.world_size = std::get<1>(drawn)[0];
  setup.replicate = std::get<1>(drawn)[1];
  return setup;
}

// Some number that differs between the cases.
std::uint64_t salt_of(const Setup& setup) {
  return setup.policy.name.size() + setup.world_size * 3 + setup.replicate + setup.accumulation;
}

// Every stage that has the cadence, at every prefetch depth or one of them, each the same as the reference at
// `reference_cadence`.
void expect_stages(Setup setup, Cadence cadence, Cadence reference_cadence) {
  const Catalog catalog = odd_catalog();
  const std::uint64_t salt = salt_of(setup);
  const ZeroOptions options = options_for(setup.policy.name, salt);
  const Script script = script_for(setup, 1 + salt);
  std::array<Trained, 2> expected;  // without and with recomputation, which shows parameters once more
  setup.cadence = reference_cadence;
  for (const Recompute recompute : {Recompute::none, Recompute::full}) {
    setup.recompute = recompute;
    expected[static_cast<std::size_t>(recompute)] = run_reference(catalog, setup, options, script);
  }
  ASSERT_EQ(expected[0].reports[1].skipped, setup.policy.name == "fp16-mixed");
  ASSERT_FALSE(expected[0].reports[0].skipped);
  ASSERT_LT(expected[0].reports[0].clip_factor, 1.0);
  setup.cadence = cadence;
  for (setup.stage = 0; setup.stage < (cadence == Cadence::step ? 2 : 4); ++setup.stage) {
    for (setup.prefetch = 0; setup.prefetch < 3; ++setup.prefetch) {
      if (!test_support::whole_grid() && (salt + static_cast<std::uint64_t>(setup.stage)) % 3 != setup.prefetch)
        continue;
      setup.recompute = setup.prefetch == 1 ? Recompute::full : Recompute::none;
      SCOPED_TRACE(fmt::format("{} world {} / {} optimizer {} A {} cadence {} stage {} prefetch {}", setup.policy.name,
                               setup.world_size, setup.replicate, states_of(setup.optimizer).name, setup.accumulation,
                               name(cadence), setup.stage, setup.prefetch));
      expect_run(catalog, setup, options, script, expected[static_cast<std::size_t>(setup.recompute)]);
    }
  }
}

TEST_P(DigestTest, EveryStageEqualsTheReference) {
  auto setup = setup_of(GetParam());
  const std::uint64_t salt = salt_of(setup);
  for (std::size_t i = 0; i < kOptimizers.size(); ++i) {
    if (!test_support::whole_grid() && i != salt % kOptimizers.size()) continue;
    setup.optimizer = kOptimizers[i];
    setup.ema = i % 2 == 0;
    setup.accumulation = 3;
    expect_stages(setup, Cadence::micro_batch, Cadence::micro_batch);
    expect_stages(setup, Cadence::step, Cadence::step);
  }
}

TEST_P(DigestTest, WithOneMicroBatchTheCadencesAreOne) {
  auto setup = setup_of(GetParam());
  setup.optimizer = kOptimizers[salt_of(setup) % 3];
  expect_stages(setup, Cadence::micro_batch, Cadence::micro_batch);
  expect_stages(setup, Cadence::step, Cadence::micro_batch);
}

// Stages 0 to 3 against the reference, for what the grid does not vary.
void expect_all_stages(Setup setup, const Catalog& catalog, const ZeroOptions& options) {
  setup.accumulation = 2;
  setup.cadence = Cadence::micro_batch;
  const Script script = script_for(setup, 5);
  const Trained expected = run_reference(catalog, setup, options, script);
  for (setup.stage = 0; setup.stage < 4; ++setup.stage) {
    SCOPED_TRACE(fmt::format("stage {}", setup.stage));
    expect_run(catalog, setup, options, script, expected);
  }
}

TEST(Digest, ReductionTreesOfOneShardGroup) {
  for (const auto& [ranks, group] : {std::pair<std::uint64_t, std::uint64_t>{4, 2}, {6, 2}, {6, 3}, {4, 1}}) {
    SCOPED_TRACE(fmt::format("{} ranks in groups of {}", ranks, group));
    auto setup = setup_of({"bf16-mixed", {ranks, 1}});
    setup.reduction_group = group;
    expect_all_stages(setup, odd_catalog(), options_for("bf16-mixed", 0));
  }
}

TEST(Digest, RanksThatExchangeCopies) {
  for (const char* precision : {"fp32", "bf16-mixed", "fp16-mixed"}) {
    for (const WorldShape& shape : {WorldShape{1, 1}, {2, 1}, {3, 1}, {4, 2}, {6, 3}, {4, 4}}) {
      SCOPED_TRACE(fmt::format("{}, {} ranks, {} replicas", precision, shape[0], shape[1]));
      auto setup = setup_of({precision, shape});
      setup.transport = Transport::staged;
      expect_all_stages(setup, odd_catalog(), options_for(precision, 0));
    }
  }
}

TEST(Digest, ClippingGroupByGroup) {
  for (const char* precision : {"fp32", "bf16-mixed"}) {
    ZeroOptions options = options_for(precision, 0);
    options.clip = ClipNorm::per_group;
    options.clip_norm = 0.1;
    expect_all_stages(setup_of({precision, {3, 1}}), odd_catalog(), options);
  }
}

TEST(Digest, AModelThatIsAllFrozenStaysAsItIs) {
  Catalog catalog = odd_catalog();
  freeze(catalog, "*");
  expect_all_stages(setup_of({"bf16-mixed", {2, 1}}), catalog, options_for("bf16-mixed", 0));
}

std::string case_name(const ::testing::TestParamInfo<DigestTest::ParamType>& info) {
  std::string name = fmt::format("{}_{}_ranks_{}_replicas", std::get<0>(info.param), std::get<1>(info.param)[0],
                                 std::get<1>(info.param)[1]);
  for (char& letter : name) letter = letter == '-' ? '_' : letter;
  return name;
}

INSTANTIATE_TEST_SUITE_P(Grid, DigestTest,
                         ::testing::Combine(::testing::Values("fp32", "bf16-mixed", "fp16-mixed", "bf16",
                                                              "bf16-mixed-fp32grad", "bf16-fp32state"),
                                            ::testing::Values(WorldShape{1, 1}, WorldShape{2, 1}, WorldShape{3, 1},
                                                              WorldShape{4, 1}, WorldShape{7, 1}, WorldShape{4, 2},
                                                              WorldShape{6, 2}, WorldShape{6, 3})),
                         case_name);

}  // namespace
}  // namespace shardplan::test
