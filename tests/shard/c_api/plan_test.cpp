// Catalogs, options and plans through the C interface.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "planner/catalog.h"
#include "planner/report.h"
#include "tests/shard/c_api/run.h"

namespace shardplan::test {
namespace {

// What shardplan_plan_create says to these options.
std::string refusal(const std::string& options) {
  const CatalogHandle catalog = small_catalog();
  shardplan_error error{};
  auto* plan = reinterpret_cast<shardplan_plan*>(&error);  // overwritten
  EXPECT_EQ(shardplan_plan_create(catalog.get(), options.c_str(), &plan, &error), SHARDPLAN_CONFIG_ERROR) << options;
  EXPECT_EQ(error.status, SHARDPLAN_CONFIG_ERROR);
  EXPECT_EQ(plan, nullptr);
  return error.message;
}

Catalog same_catalog() {
  CatalogBuilder builder("tensors", "tensors");
  builder.begin_unit("embed");
  builder.add({.name = "embed.weight", .shape = {19, 5}});
  builder.add_run("layers", 0, 2, {{.name = "weight", .shape = {70, 3}}, {.name = "bias", .shape = {7}}});
  builder.begin_unit("head");
  builder.add({.name = "head.weight", .shape = {19, 5}, .tied_to = "embed.weight"});
  builder.add({.name = "head.norm", .shape = {5}});
  return builder.finish();
}

shardplan_plan_facts facts_of(const shardplan_plan& plan) {
  shardplan_plan_facts facts{};
  facts.struct_size = sizeof facts;
  shardplan_error error{};
  EXPECT_OK(shardplan_plan_get_facts(&plan, &facts, &error), error);
  return facts;
}

TEST(CApiVersion, IsTheHeaders) {
  EXPECT_EQ(shardplan_version(), SHARDPLAN_VERSION);
  EXPECT_STREQ(shardplan_status_name(SHARDPLAN_COMMUNICATION_ERROR), "communication error");
  EXPECT_STREQ(shardplan_status_name(99), "unknown status");
}

TEST(CApiPlan, IsThePlannersOwn) {
  const CatalogHandle catalog = small_catalog();
  for (const char* stage : {"0", "1", "2", "3"}) {
    SCOPED_TRACE(stage);
    const PlanHandle handle = plan_of(*catalog, std::string(R"({"world_size": 4, "replicate": 2, "prefetch": 2,
        "grad_accum": 3, "precision": "fp16-mixed", "optimizer": "lion", "ema": true, "recompute": "full",
        "cadence": "micro_batch", "reduction_group": 2, "learning_rate": 0.5, "zero_stage": )") +
                                                    stage + "}");
    auto setup = shardplan::Setup{};
    setup.world_size = 4;
    setup.replicate = 2;
    setup.stage = stage[0] - '0';
    setup.prefetch = 2;
    setup.accumulation = 3;
    setup.policy = policy_named("fp16-mixed");
    setup.optimizer = OptimizerKind::lion;
    setup.ema = true;
    setup.recompute = Recompute::full;
    setup.cadence = Cadence::micro_batch;
    setup.reduction_group = 2;
    const StepPlan plan = make_step_plan(same_catalog(), setup);
    const Report report = report_shardplan(same_catalog(), plan);
    const shardplan_plan_facts facts = facts_of(*handle);
    EXPECT_EQ(facts.hash, plan.hash);
    EXPECT_EQ(facts.units, 4U);
    EXPECT_EQ(facts.tensors, 7U);
    EXPECT_EQ(facts.parameter_elements, 534U);
    EXPECT_EQ(facts.arena_bytes, plan.device.bytes.count());
    EXPECT_EQ(facts.peak_bytes, plan.device.live_peak.count());
    EXPECT_EQ(facts.sent_bytes_per_step, report.traffic.total().count());
    EXPECT_EQ(facts.parameter_bytes, report.ranks[0].device.parameters.count());
    EXPECT_EQ(facts.optimizer_state_bytes, report.ranks[0].device.optimizer_states.count());
    EXPECT_EQ(facts.peak_parameter_bytes + facts.peak_gathered_parameter_bytes + facts.peak_gradient_bytes +
                  facts.peak_optimizer_state_bytes + facts.peak_communication_bytes,
              facts.peak_bytes);
  }
}

TEST(CApiPlan, PrecisionAndWhatOverridesIt) {
  const CatalogHandle catalog = small_catalog();
  auto setup = shardplan::Setup{};
  setup.policy = policy_named("bf16-mixed");
  setup.policy.gradient = DType::f32;
  setup.policy.wire = DType::f32;
  setup.policy.first_moment = setup.policy.second_moment = DType::bf16;
  const std::string expected = make_step_plan(same_catalog(), setup).hash;
  EXPECT_EQ(facts_of(*plan_of(*catalog, R"({"moment_dtype": "bf16", "grad_dtype": "fp32", "precision": null})")).hash,
            expected);
  setup.policy.wire = DType::bf16;
  EXPECT_EQ(
      facts_of(*plan_of(*catalog, R"({"moment_dtype": "bf16", "grad_dtype": "fp32", "wire_dtype": "bf16"})")).hash,
      make_step_plan(same_catalog(), setup).hash);
}

TEST(CApiPlan, NoOptionsAreTheDefaults) {
  const CatalogHandle catalog = small_catalog();
  shardplan_plan* plan = nullptr;
  ASSERT_EQ(shardplan_plan_create(catalog.get(), nullptr, &plan, nullptr), SHARDPLAN_OK);
  const PlanHandle handle(plan);
  EXPECT_EQ(facts_of(*handle).hash, make_step_plan(same_catalog(), {}).hash);
}

TEST(CApiPlan, FreezesByGlob) {
  const CatalogHandle catalog = small_catalog();
  Catalog frozen = same_catalog();
  freeze(frozen, "layers.*");
  const PlanHandle plan = plan_of(*catalog, R"({"freeze": ["layers.*"]})");
  EXPECT_EQ(facts_of(*plan).hash, make_step_plan(frozen, {}).hash);
  EXPECT_EQ(facts_of(*plan).trainable_elements, 100U);
  EXPECT_EQ(refusal(R"({"freeze": ["nobody*"]})"), "options: freeze: 'nobody*' matches no tensor of tensors");
}

TEST(CApiPlan, AWrongOptionIsNamed) {
  const auto expect = [](const std::string& options, const std::string& words) {
    const std::string message = refusal(options);
    EXPECT_NE(message.find(words), std::string::npos) << message << "\nlacks: " << words;
  };
  expect(R"({"zero_stag": 2})", "options: zero_stag: is not known; the nearest keys are zero_stage");
  expect(R"({"zero_stage": 4})", "options: zero_stage: ");
  expect(R"({"groups": [{"match": "*", "lerning_rate": 1}]})",
         "groups[0].lerning_rate: is not known; the nearest keys");
  expect(R"({"groups": []})", "options: groups: expected one group or more");
  expect(R"({"groups": [{}, {}, {}, {}, {}, {}, {}]})", "options: groups: 7 are more than 6");
  expect(R"({"loss_scaling": {"rule": "torch", "windo": 3}})", "options: loss_scaling.windo: is not known");
  expect(R"({"loss_scaling": "touch"})", "\"constant\" or \"torch\" or \"deepspeed\" or \"megatron\"");
  expect(R"({"loss_scaling": {"rule": "torch", "growth": 0.5}})", "growth");
  expect(R"({"precision": "bf15"})", "options: precision: 'bf15' is not a known precision: expected one of fp32");
  expect(R"({"optimizer": "adamm"})", "options: optimizer: 'adamm' is not a known optimizer");
  expect(R"({"cadence": "step", "zero_stage": 2, "world_size": 2})", "options: cadence: stage 2 shards gradients");
  expect(R"({"world_size": 0})", "options: world_size: 0 is no world size");
  expect(R"({"offload_io": "aio"})", "offload_io: expected \"pread\" or \"io_uring\"");
  expect(R"({"wire_dtype": "u8"})", "options: wire_dtype: ");
  expect(R"({"offload": "optimizer=file:/a,gradients=file:/b"})", "options: offload: folders /a and /b: expected one");
  expect(R"({"learning_rate": -1})", "options: learning_rate: expected a number from 0, found -1");
  expect(R"({"beta1": 1})", "options: beta1: expected a number from 0 and below 1");
  expect(R"({"learning_rate": Infinity})", "options: learning_rate: ");
  expect(R"({"ema": 1})", "options: ema: ");
  expect(R"({"world_size": 2, "world_size": 2})", "options: ");
  expect("[]", "options: expected an object");
  expect("{", "options: ");
}

TEST(CApiPlan, ReportsItselfAsJson) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, R"({"world_size": 2, "zero_stage": 3})");
  const char* json = nullptr;
  shardplan_error error{};
  ASSERT_OK(shardplan_plan_get_report(plan.get(), &json, &error), error);
  const std::string text = json;
  const shardplan_plan_facts facts = facts_of(*plan);
  for (const std::string& part :
       {std::string(R"("schema":"shardplan.plan/1")"), R"("hash":")" + std::string(facts.hash) + '"',
        std::string(R"("zero_stage":3)"), R"("arena_bytes":)" + std::to_string(facts.arena_bytes),
        R"("sent_bytes_per_step":)" + std::to_string(facts.sent_bytes_per_step)}) {
    EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
  }
}

TEST(CApiCatalog, FromAPresetIsVisitedInOrder) {
  shardplan_catalog* made = nullptr;
  shardplan_error error{};
  ASSERT_OK(shardplan_catalog_from_model("gpt2", &made, &error), error);
  const CatalogHandle catalog(made);
  struct Seen {
    std::uint64_t tensors = 0;
    std::uint64_t units = 0;
    std::uint64_t elements = 0;
    std::string last_name;
    std::string last_unit;
  } seen;
  const auto visit = [](void* user, std::uint64_t unit, std::uint64_t tensor, const shardplan_tensor* facts) {
    auto& to = *static_cast<Seen*>(user);
    EXPECT_EQ(tensor, to.tensors++);
    EXPECT_TRUE(unit + 1 == to.units || unit == to.units);
    to.units = unit + 1;
    std::uint64_t elements = 1;
    for (std::size_t dim = 0; dim < facts->rank; ++dim) elements *= facts->shape[dim];
    if (facts->tied_to == nullptr) to.elements += elements;
    to.last_name = facts->name;
    to.last_unit = facts->unit;
    return 0;
  };
  ASSERT_OK(shardplan_catalog_visit(catalog.get(), visit, &seen, &error), error);
  EXPECT_EQ(seen.elements, 124'439'808U);  // Hugging Face's count of gpt2
  EXPECT_EQ(seen.last_name, "lm_head.weight");
  const PlanHandle plan = plan_of(*catalog, "{}");
  EXPECT_EQ(facts_of(*plan).units, seen.units);
  EXPECT_EQ(facts_of(*plan).tensors, seen.tensors);
  EXPECT_EQ(facts_of(*plan).parameter_elements, seen.elements);
}

TEST(CApiCatalog, AWrongListIsNamed) {
  const std::vector<std::uint64_t> shape{4};
  std::vector<shardplan_tensor> tensors{tensor_of("a.weight", shape), tensor_of("a.weight", shape)};
  shardplan_error error{};
  shardplan_catalog* catalog = nullptr;
  EXPECT_EQ(shardplan_catalog_from_tensors(tensors.data(), 2, &catalog, &error), SHARDPLAN_CONFIG_ERROR);
  EXPECT_NE(std::string(error.message).find("a.weight"), std::string::npos) << error.message;
  tensors[1].name = "b";
  tensors[1].tied_to = "c";
  EXPECT_EQ(shardplan_catalog_from_tensors(tensors.data(), 2, &catalog, &error), SHARDPLAN_CONFIG_ERROR);
  EXPECT_EQ(shardplan_catalog_from_tensors(nullptr, 0, &catalog, &error), SHARDPLAN_CONFIG_ERROR);
  EXPECT_EQ(shardplan_catalog_from_model("gtp2", &catalog, &error), SHARDPLAN_CONFIG_ERROR);
  EXPECT_NE(std::string(error.message).find("gpt2"), std::string::npos) << error.message;
  tensors[1].tied_to = nullptr;
  tensors[1].dtype = SHARDPLAN_I8;
  tensors[1].frozen = 1;
  EXPECT_EQ(shardplan_catalog_from_tensors(tensors.data(), 2, &catalog, &error), SHARDPLAN_OK) << error.message;
  shardplan_catalog_free(catalog);
  const std::vector<std::uint64_t> huge{UINT64_MAX, UINT64_MAX};
  tensors[0] = tensor_of("a.weight", huge);
  EXPECT_NE(shardplan_catalog_from_tensors(tensors.data(), 2, &catalog, &error), SHARDPLAN_OK);
  EXPECT_EQ(catalog, nullptr);
}

}  // namespace
}  // namespace shardplan::test
