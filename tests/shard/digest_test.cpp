// A stage changes where bytes live, never what they are: every stage, prefetch depth and cadence against one
// single-threaded reference, on a catalog that has every odd thing in it.
//
// By default a sample of the grid; all of it with SHARDPLAN_TEST_ALL=1.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <string>
#include <tuple>

#include "tests/shard/training_run.h"

namespace shardplan::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool whole_grid() {
  const char* all = std::getenv("SHARDPLAN_TEST_ALL");
  return all != nullptr && std::string(all) == "1";
}

ZeroOptions options_for(const std::string& precision) {
  ZeroOptions options;
  options.groups = {{.match = "*bias", .values = {.learning_rate = 3e-3, .weight_decay = 0.0}},
                    {.match = "layers.1.*", .values = {.learning_rate = 2e-3, .beta1 = 0.8, .beta2 = 0.97}},
                    {.match = "*", .values = {.learning_rate = 1e-3, .weight_decay = 0.1}}};
  options.clip_norm = 0.5;
  options.initial_values = synthetic_values;
  if (precision == "fp16-mixed") {
    options.loss_scaling = default_scaling(LossScaleRule::torch);
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
    script.poisons = {{{.step = 1, .micro_batch = 0, .rank = last_rank, .unit = 8}, kInfinity}};
  }
  return script;
}

using WorldShape = std::array<std::uint64_t, 2>;  // ranks, replicas
constexpr std::array<OptimizerKind, 5> kOptimizers{OptimizerKind::adamw, OptimizerKind::sgd_momentum, OptimizerKind::lion,
                                                   OptimizerKind::sgd, OptimizerKind::adam};

class DigestTest : public ::testing::TestWithParam<std::tuple<std::string, WorldShape>> {
 protected:
  Setup setup() const {
    Setup setup;
    setup.policy = policy_named(std::get<0>(GetParam()));
    setup.world_size = std::get<1>(GetParam())[0];
    setup.replicate = std::get<1>(GetParam())[1];
    return setup;
  }
  // Some number that differs between the parameters of the test.
  std::uint64_t salt() const {
    const std::string& precision = std::get<0>(GetParam());
    return precision.size() + std::get<1>(GetParam())[0] * 3 + std::get<1>(GetParam())[1];
  }
  // Every stage that has the cadence, at every prefetch depth or one of them.
  void expect_stages(Setup setup, Cadence cadence, bool step_is_micro_batch) const {
    const Catalog catalog = odd_catalog();
    const ZeroOptions options = options_for(setup.policy.name);
    setup.cadence = cadence;
    const Script script = script_for(setup, 1 + salt());
    const Outcome expected = run_reference(catalog, setup, options, script);
    if (setup.policy.name == "fp16-mixed") {
      ASSERT_TRUE(expected.reports[1].skipped);
    }
    ASSERT_FALSE(expected.reports[0].skipped);
    ASSERT_LT(expected.reports[0].clip_factor, 1.0);
    for (setup.stage = 0; setup.stage < 4; ++setup.stage) {
      for (setup.prefetch = 0; setup.prefetch < 3; ++setup.prefetch) {
        if (!whole_grid() && (salt() + static_cast<std::uint64_t>(setup.stage)) % 3 != setup.prefetch) continue;
        setup.recompute = setup.prefetch == 1 ? Recompute::full : Recompute::none;
        // At A = 1 the cadences are one.
        setup.cadence = setup.stage < 2 && step_is_micro_batch ? Cadence::step : cadence;
        if (setup.stage >= 2 && *setup.cadence == Cadence::step) continue;
        SCOPED_TRACE(fmt::format("{} world {} x {} optimizer {} A {} cadence {} stage {} prefetch {}", setup.policy.name,
                                 setup.world_size, setup.replicate, states_of(setup.optimizer).name,
                                 setup.accumulation, name(*setup.cadence), setup.stage, setup.prefetch));
        Outcome same = expected;
        if (setup.recompute == Recompute::full) same.digests = run_reference(catalog, setup, options, script).digests;
        expect_run(catalog, setup, options, script, same);
      }
    }
  }
};

TEST_P(DigestTest, EveryStageEqualsTheReference) {
  Setup setup = this->setup();
  for (std::size_t i = 0; i < kOptimizers.size(); ++i) {
    if (!whole_grid() && i != salt() % kOptimizers.size()) continue;
    setup.optimizer = kOptimizers[i];
    setup.ema = i % 2 == 0;
    setup.accumulation = 3;
    expect_stages(setup, Cadence::micro_batch, false);
    expect_stages(setup, Cadence::step, false);
    setup.accumulation = 1;
    expect_stages(setup, Cadence::micro_batch, true);
  }
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
