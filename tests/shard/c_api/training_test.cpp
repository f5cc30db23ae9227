// Training through the C interface: the same bits at every stage, whoever walks the units; state in and out.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tests/shard/c_api/run.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

constexpr std::uint64_t kSteps = 3;

std::string options_of(const char* precision, int ranks, int stage, const char* more = "") {
  return std::string(R"({"grad_accum": 2, "cadence": "micro_batch", "clip_norm": 0.5, "weight_decay": 0.1,
      "groups": [{"match": "*bias", "weight_decay": 0}, {"learning_rate": 0.01}],
      "world_size": )") +
         std::to_string(ranks) + R"(, "zero_stage": )" + std::to_string(stage) + R"(, "precision": ")" + precision +
         '"' + more + "}";
}

struct Result {
  std::vector<float> parameters;
  std::vector<double> norms;
  bool operator==(const Result&) const = default;
};

Result train(const std::string& options, int ranks, Client client) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, options);
  Result result;
  with_optimizers(*plan, ranks, [&](const Rank& rank) {
    Result mine;
    for (std::uint64_t step = 0; step < kSteps; ++step) {
      const shardplan_step_report report = run_step(rank, client, step, 2);
      EXPECT_EQ(report.step, step + 1);
      EXPECT_EQ(report.groups, 2);
      EXPECT_LT(report.clip_factor, 1.0);
      mine.norms.insert(mine.norms.end(), {report.norm, report.group_norms[0], report.group_norms[1]});
    }
    mine.parameters = parameters_of(rank);
    if (rank.rank == 0) result = mine;
  });
  EXPECT_EQ(result.parameters.size(), 534U);
  return result;
}

TEST(CApiTraining, WhereStatesLiveChangesNoBit) {
  const Result expected = train(options_of("bf16-mixed", 2, 0), 2, Client::enters_units);
  for (int stage = 0; stage < 4; ++stage) {
    const test_support::TemporaryFolder folder;
    const std::string more = R"(, "offload_threads": 2, "offload": "optimizer=file:)" + folder.path() +
                             R"(,gradients=file@0.5,parameters=file")";
    EXPECT_EQ(train(options_of("bf16-mixed", 2, stage, more.c_str()), 2, Client::enters_units), expected) << stage;
  }
}

TEST(CApiTraining, EveryStageAndBothKindsOfClientGiveTheSameBits) {
  for (const char* precision : {"fp32", "bf16-mixed"}) {
    const Result expected = train(options_of(precision, 3, 0), 3, Client::enters_units);
    for (int stage = 0; stage < 4; ++stage) {
      SCOPED_TRACE(std::string(precision) + " stage " + std::to_string(stage));
      EXPECT_EQ(train(options_of(precision, 3, stage), 3, Client::enters_units), expected);
      // In bf16, a tied tensor's two contributions are rounded one after the other in both.
      if (stage == 3) continue;
      EXPECT_EQ(train(options_of(precision, 3, stage), 3, Client::hands_in_gradients), expected);
    }
  }
}

TEST(CApiTraining, HybridShardingEqualsTheSameTreeOfAFlatWorld) {
  const Result expected = train(options_of("fp32", 4, 0, R"(, "reduction_group": 2)"), 4, Client::enters_units);
  for (int stage = 0; stage < 4; ++stage) {
    SCOPED_TRACE(stage);
    EXPECT_EQ(train(options_of("fp32", 4, stage, R"(, "replicate": 2)"), 4, Client::enters_units).parameters,
              expected.parameters);
  }
}

TEST(CApiTraining, ALearningRateOfZeroStopsOneGroup) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, R"({"precision": "fp32", "groups": [{"match": "*bias"}, {}]})");
  with_optimizers(*plan, 1, [&](const Rank& rank) {
    shardplan_error error{};
    EXPECT_OK(shardplan_optimizer_set_learning_rate(rank.optimizer, 0, 0, &error), error);
    const std::vector<float> before = parameters_of(rank);
    run_step(rank, Client::hands_in_gradients, 0, 1);
    const std::vector<float> after = parameters_of(rank);
    // embed 95, weight 210, bias 7, ...
    for (std::size_t i = 0; i < before.size(); ++i) {
      const bool bias = (i >= 305 && i < 312) || (i >= 522 && i < 529);
      EXPECT_EQ(before[i] == after[i], bias) << i;
    }
  });
}

TEST(CApiTraining, ParametersStayInPlaceForAClientThatIgnoresUnits) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, R"({"precision": "fp32", "world_size": 2, "zero_stage": 2})");
  with_optimizers(*plan, 2, [&](const Rank& rank) {
    shardplan_error error{};
    shardplan_unit_views views{};
    ASSERT_OK(shardplan_optimizer_get_parameters(rank.optimizer, 1, &views, &error), error);
    ASSERT_EQ(views.count, 2U);
    EXPECT_EQ(views.gradients, nullptr);
    EXPECT_EQ(views.parameters[0].elements, 210U);
    const auto* weight = static_cast<const float*>(views.parameters[0].data);
    EXPECT_EQ(weight[0], parameters_of(rank)[95]);
    run_step(rank, Client::hands_in_gradients, 0, 1);
    EXPECT_EQ(weight[0], parameters_of(rank)[95]);
  });
}

// A checkpoint as a C client would keep it.
struct Saved {
  std::mutex mutex;
  std::map<std::pair<std::string, int>, std::map<std::uint64_t, std::vector<char>>> ranges;
  shardplan_step_state step{};

  static std::size_t bytes(const shardplan_state_range& range) {
    return static_cast<std::size_t>(range.elements) * (range.dtype == SHARDPLAN_F32 ? 4U : 2U);
  }
  static int save(void* user, const shardplan_state_range* range, const void* values) {
    auto& saved = *static_cast<Saved*>(user);
    const auto* data = static_cast<const char*>(values);
    const std::lock_guard lock(saved.mutex);
    auto& of_tensor = saved.ranges[{range->name, range->kind}];
    EXPECT_TRUE(of_tensor.emplace(range->first, std::vector<char>(data, data + bytes(*range))).second);
    return 0;
  }
  // Joins what several ranks have saved.
  static int load(void* user, const shardplan_state_range* range, void* values) {
    auto& saved = *static_cast<Saved*>(user);
    std::vector<char> whole;
    for (const auto& [first, part] : saved.ranges.at({range->name, range->kind})) {
      whole.insert(whole.end(), part.begin(), part.end());
    }
    const std::size_t width = bytes(*range) / range->elements;
    if ((range->first + range->elements) * width > whole.size()) return 1;
    std::memcpy(values, whole.data() + range->first * width, bytes(*range));
    return 0;
  }
};

TEST(CApiTraining, StateOfThreeRanksGoesOnInThreeAtAnotherStageWithTheSameBits) {
  const Result expected = train(options_of("bf16-mixed", 3, 1), 3, Client::enters_units);
  const CatalogHandle catalog = small_catalog();
  Saved saved;
  with_optimizers(*plan_of(*catalog, options_of("bf16-mixed", 3, 2)), 3, [&](const Rank& rank) {
    for (std::uint64_t step = 0; step + 1 < kSteps; ++step) run_step(rank, Client::enters_units, step, 2);
    shardplan_error error{};
    EXPECT_OK(shardplan_optimizer_visit_state(rank.optimizer, Saved::save, &saved, &error), error);
    shardplan_step_state step{};
    step.struct_size = sizeof step;
    EXPECT_OK(shardplan_optimizer_get_step_state(rank.optimizer, &step, &error), error);
    EXPECT_EQ(step.steps_applied, kSteps - 1);
    if (rank.rank == 0) saved.step = step;
  });
  with_optimizers(*plan_of(*catalog, options_of("bf16-mixed", 3, 3)), 3, [&](const Rank& rank) {
    shardplan_error error{};
    ASSERT_OK(shardplan_optimizer_load_state(rank.optimizer, &saved.step, Saved::load, &saved, &error), error);
    EXPECT_EQ(run_step(rank, Client::enters_units, kSteps - 1, 2).step, kSteps);
    EXPECT_EQ(parameters_of(rank), expected.parameters);
  });
}

TEST(CApiTraining, AGradientThatIsNotFiniteSkipsTheStepOnEveryRank) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(
      *catalog, R"({"precision": "fp16-mixed", "world_size": 2, "loss_scaling": {"rule": "torch", "initial": 8}})");
  with_optimizers(*plan, 2, [&](const Rank& rank) {
    std::vector<float> norm(5, rank.rank == 1 ? INFINITY : 0.F);
    std::vector<shardplan_view> gradients(7);
    gradients[6] = {norm.data(), 5, SHARDPLAN_F32};
    shardplan_error error{};
    const std::vector<float> before = parameters_of(rank);
    ASSERT_OK(shardplan_optimizer_reduce(rank.optimizer, SHARDPLAN_LAST_MICRO_BATCH, gradients.data(), 7, &error),
              error);
    shardplan_step_report report{};
    report.struct_size = sizeof report;
    ASSERT_OK(shardplan_optimizer_step(rank.optimizer, &report, &error), error);
    EXPECT_EQ(report.skipped, 1);
    EXPECT_EQ(report.loss_scale, 8);
    EXPECT_EQ(report.next_loss_scale, 4);
    EXPECT_EQ(parameters_of(rank), before);
  });
}

}  // namespace
}  // namespace shardplan::test
