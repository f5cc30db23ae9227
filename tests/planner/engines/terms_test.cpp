// Reports and explanations are folds of the same terms.
#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include "base/error.h"
#include "planner/engines/engine.h"
#include "tests/support/catalogs.h"

namespace shardplan {
namespace {

struct Combination {
  Engine engine;
  int stage;
  EngineOptions options;
};

std::vector<Combination> combinations() {
  std::vector<Combination> all;
  for (const int stage : {0, 1, 2, 3}) {
    all.push_back({Engine::deepspeed, stage, {}});
    all.push_back({Engine::megatron, stage, {}});
    if (stage >= 2) all.push_back({Engine::fsdp2, stage, {}});
  }
  EngineOptions offload;
  offload.deepspeed.offload_optimizer.device = OffloadDevice::cpu;
  offload.fsdp2.offload = true;
  offload.megatron.optimizer_cpu_offload = true;
  all.push_back({Engine::deepspeed, 2, offload});
  all.push_back({Engine::fsdp2, 3, offload});
  all.push_back({Engine::megatron, 1, offload});
  offload.deepspeed.offload_param.device = OffloadDevice::nvme;
  all.push_back({Engine::deepspeed, 3, offload});
  return all;
}

RC_GTEST_PROP(Terms, ReportsAddUp, ()) {
  const Catalog catalog = *test_support::any_catalog(test_support::Sizes::small);
  const Combination combination = *rc::gen::elementOf(combinations());
  shardplan::Setup setup;
  setup.stage = combination.stage;
  setup.world_size = *rc::gen::inRange<std::uint64_t>(1, 12);
  setup.policy = policy_named(*rc::gen::element("bf16-mixed", "bf16-mixed-fp32grad", "fp16-mixed", "fp32", "bf16"));
  // DeepSpeed refuses gradients in another dtype there.
  if (combination.engine == Engine::deepspeed && setup.stage == 0) setup.policy.gradient = setup.policy.parameter;
  const EngineTerms terms = terms_of(combination.engine, catalog, setup, combination.options);
  const RankReport rank = report_of(combination.engine, catalog, setup, terms).ranks.front();
  const PeakMemory& peak = rank.device.at_peak;
  RC_ASSERT(*peak.parameters + *peak.gathered_parameters + *peak.gradients + *peak.optimizer_states +
                *peak.communication_buffers ==
            *rank.device.live_peak);
  RC_ASSERT(*rank.device.live_peak >= *rank.device.allocated_after_step);
  RC_ASSERT(*rank.device.live_peak >= rank.device.model_states());
  RC_ASSERT(!rank.arenas.has_value());
  RC_ASSERT(*rank.host.total == *rank.host.pinned + *rank.host.pageable);
  Bytes sum;
  bool after = false;
  for (const Explanation& line : explain_terms(terms)) {
    RC_ASSERT(!line.formula.empty() && !line.inputs.empty() && !line.source.empty());
    if (line.name == "peak") {
      RC_ASSERT(line.bytes == sum);
      after = true;
    }
    if (!after) sum += line.bytes;
  }
  RC_ASSERT(sum == *rank.device.live_peak);
}

TEST(Terms, ACountAloneHasStatesAndNoBuffers) {
  CatalogBuilder builder("psi", "parameters");
  builder.begin_unit("parameters");
  builder.add({.name = "parameters", .shape = {1'000'000}, .dtype = std::nullopt});
  Catalog catalog = builder.finish();
  catalog.count_only = true;
  for (const Engine engine : {Engine::deepspeed, Engine::fsdp2, Engine::megatron}) {
    shardplan::Setup setup;
    setup.stage = 3;
    setup.world_size = 8;
    const Report report = report_of(engine, catalog, setup, terms_of(engine, catalog, setup, {}));
    EXPECT_FALSE(report.ranks.front().device.live_peak.has_value());
    EXPECT_GT(report.ranks.front().device.model_states(), 0_B);
  }
}

// bitsandbytes' scales are attributes of parameters, so nobody shards them.
TEST(Terms, ScalesAreWholeOnEveryRank) {
  CatalogBuilder builder("quantised", "tensors");
  builder.add_run("layers", 0, 2,
                  {{.name = "a.weight", .shape = {64, 64}, .dtype = DType::u8, .trainable = false},
                   {.name = "a.scales", .shape = {640}, .dtype = DType::f32, .trainable = false, .scales = true}});
  const Catalog catalog = builder.finish();
  for (const Engine engine : {Engine::deepspeed, Engine::fsdp2, Engine::megatron}) {
    shardplan::Setup setup;
    setup.stage = 3;
    setup.world_size = 8;
    EngineOptions options;
    options.deepspeed.stage3_param_persistence_threshold = 0;
    const Report report = report_of(engine, catalog, setup, terms_of(engine, catalog, setup, options));
    EXPECT_EQ(report.ranks.front().device.parameters.count(), 2U * (64 * 64 / 8 + 4 * 640)) << name(engine);
  }
}

TEST(Terms, OursIsNoListOfTerms) {
  EXPECT_THROW(terms_of(Engine::shardplan, {}, {}, {}), ConfigError);
  EXPECT_THROW(terms_of(Engine::paper, {}, {}, {}), ConfigError);
}

}  // namespace
}  // namespace shardplan
