// FSDP2: chunks on dim 0, what is gathered, what it refuses.
#include "planner/engines/fsdp2.h"

#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

Catalog two_blocks() {
  CatalogBuilder builder("two", "tensors");
  builder.begin_unit("embedding");
  builder.add({.name = "embed.weight", .shape = {10, 4}, .dtype = std::nullopt});
  builder.add_run(
      "layers", 0, 2,
      {{.name = "w", .shape = {5, 3}, .dtype = std::nullopt}, {.name = "b", .shape = {5}, .dtype = std::nullopt}});
  return builder.finish();
}

Bytes bytes_of(const EngineTerms& terms, const std::string& name) {
  Bytes sum;
  for (const Term& term : terms.terms) {
    if (term.name == name) sum += term.bytes;
  }
  return sum;
}

Setup stage3(std::uint64_t world) {
  shardplan::Setup setup;
  setup.stage = 3;
  setup.world_size = world;
  return setup;
}

TEST(Fsdp2Shards, ChunksOfDim0) {
  EXPECT_EQ(fsdp2_shard_elements({5, 3}, 4), 6U);  // 2 rows of 3; ranks hold 2, 2, 1, 0 rows
  EXPECT_EQ(fsdp2_last_shard_elements({5, 3}, 4), 0U);
  EXPECT_EQ(fsdp2_last_shard_elements({5, 3}, 3), 3U);  // 2, 2, 1
  EXPECT_EQ(fsdp2_shard_elements({}, 8), 1U);
  EXPECT_EQ(fsdp2_shard_elements({0, 3}, 8), 0U);
}

RC_GTEST_PROP(Fsdp2Shards, CoverTheTensor, ()) {
  const auto rows = *rc::gen::inRange<std::uint64_t>(0, 5000);
  const auto columns = *rc::gen::inRange<std::uint64_t>(1, 50);
  const auto ranks = *rc::gen::inRange<std::uint64_t>(1, 300);
  const Shape shape{rows, columns};
  const std::uint64_t shard = fsdp2_shard_elements(shape, ranks);
  RC_ASSERT(shard * ranks >= rows * columns);
  // Never as much as a whole row per rank too many.
  RC_ASSERT(shard * ranks < rows * columns + ranks * columns);
  RC_ASSERT(fsdp2_last_shard_elements(shape, ranks) <= shard);
  RC_ASSERT(fsdp2_shard_elements(shape, 1) == rows * columns);
  RC_ASSERT(fsdp2_shard_elements(shape, ranks + 1) <= shard);
}

TEST(Fsdp2, TheShardedParameterIsTheMaster) {
  const EngineTerms terms = fsdp2_terms(two_blocks(), stage3(2), {});
  // 5 rows of 4 and per block 3 of 3 and 3 of 1.
  constexpr std::uint64_t kShard = 20 + 2 * (9 + 3);
  EXPECT_EQ(bytes_of(terms, "parameters: sharded, the master").count(), 4 * kShard);
  EXPECT_EQ(bytes_of(terms, "gradients: sharded").count(), 4 * kShard);
  EXPECT_EQ(bytes_of(terms, "optimizer states: moments").count(), 8 * kShard);
  EXPECT_EQ(bytes_of(terms, "gathered parameters: the root").count(), 2 * 40);
  EXPECT_EQ(bytes_of(terms, "gathered parameters: blocks").count(), 2 * 2 * 24);
  EXPECT_EQ(bytes_of(terms, "reduce-scatter input").count(), 2 * 40);
}

TEST(Fsdp2, WithoutReshardingAllBlocksStayGathered) {
  shardplan::Setup setup = stage3(2);
  setup.stage = 2;
  CatalogBuilder builder("six", "tensors");
  builder.add_run("layers", 0, 6, {{.name = "w.w", .shape = {4, 4}, .dtype = std::nullopt}});
  const Catalog catalog = builder.finish();
  EXPECT_EQ(bytes_of(fsdp2_terms(catalog, setup, {}), "gathered parameters: blocks").count(), 6 * 2 * 16);
  Fsdp2Options kept;
  kept.reshard_after_forward = false;
  EXPECT_EQ(bytes_of(fsdp2_terms(catalog, stage3(2), kept), "gathered parameters: blocks").count(), 6 * 2 * 16);
  EXPECT_EQ(bytes_of(fsdp2_terms(catalog, stage3(2), {}), "gathered parameters: blocks").count(), 2 * 2 * 16);
}

// torch 2.15: a gradient is a view of what the reduction gives, unless it is cast or added to one from before.
TEST(Fsdp2, AReducedGradientIsThereOnceOrTwice) {
  shardplan::Setup setup = stage3(2);
  EXPECT_EQ(bytes_of(fsdp2_terms(two_blocks(), setup, {}), "reduce-scatter output").count(), 2 * 20U);  // bf16 to fp32
  setup.policy = policy_named("fp32");
  EXPECT_EQ(bytes_of(fsdp2_terms(two_blocks(), setup, {}), "reduce-scatter output"), 0_B);
  setup.accumulation = 2;
  EXPECT_EQ(bytes_of(fsdp2_terms(two_blocks(), setup, {}), "reduce-scatter output").count(), 4 * 20U);
}

// One rank copies its parameters too (wait_for_unshard).
TEST(Fsdp2, OneRankGathersACopy) {
  shardplan::Setup setup = stage3(1);
  setup.policy = policy_named("fp32");
  EXPECT_EQ(bytes_of(fsdp2_terms(two_blocks(), setup, {}), "gathered parameters: blocks").count(), 4U * 2 * (15 + 5));
}

// As torch.distributed.pipelining has it (stage.py, backward_maybe_with_nosync).
TEST(Fsdp2, WithoutSyncGradientsWaitWhole) {
  shardplan::Setup setup = stage3(2);
  setup.policy = policy_named("bf16-mixed");
  setup.accumulation = 4;
  Fsdp2Options options;
  options.reduce_dtype = DType::f32;
  options.gradient_sync = false;
  const EngineTerms terms = fsdp2_terms(two_blocks(), setup, options);
  EXPECT_EQ(bytes_of(terms, "gradients: whole, waiting").count(), 4 * (40 + 2 * 20U));
  EXPECT_EQ(bytes_of(terms, "gathered parameters: blocks").count(), 2 * 2 * (18 + 6U));  // both, padded
  EXPECT_EQ(bytes_of(terms, "gradients of the unit that computes"), 0_B);
  EXPECT_EQ(bytes_of(terms, "reduce-scatter output"), 0_B);  // the sharded gradient is a view of it
  EXPECT_EQ(bytes_of(terms, "gradients: sharded").count(), 4 * (20 + 2 * (9 + 3U)));
  // Gathered and reduced once a step.
  setup.accumulation = 1;
  options.reshard_after_forward = false;
  options.gradient_sync = true;
  EXPECT_EQ(terms.traffic.total(), fsdp2_terms(two_blocks(), setup, options).traffic.total());
}

// Gradients travel in the dtype that they are reduced in, whatever the policy's wire is.
TEST(Fsdp2, GradientsTravelInTheDtypeOfTheirReduction) {
  shardplan::Setup setup = stage3(2);
  setup.policy = policy_named("bf16-mixed");
  const EngineTerms narrow = fsdp2_terms(two_blocks(), setup, {});
  Fsdp2Options options;
  options.reduce_dtype = DType::f32;
  const EngineTerms wide = fsdp2_terms(two_blocks(), setup, options);
  EXPECT_EQ(wide.traffic.reduce_gradients, 2 * narrow.traffic.reduce_gradients);
  EXPECT_EQ(wide.traffic.gather_parameters, narrow.traffic.gather_parameters);
  setup.policy.wire = DType::f32;
  EXPECT_EQ(wide.traffic.total(), fsdp2_terms(two_blocks(), setup, {}).traffic.total());
}

// Stage 2 keeps what it gathers through the backward; told to reshard it gathers twice, as stage 3.
TEST(Fsdp2, WhatIsNotKeptIsGatheredTwice) {
  shardplan::Setup setup = stage3(2);
  setup.accumulation = 3;
  const Bytes twice = fsdp2_terms(two_blocks(), setup, {}).traffic.gather_parameters;
  setup.stage = 2;
  EXPECT_EQ(2 * fsdp2_terms(two_blocks(), setup, {}).traffic.gather_parameters, twice);
  Fsdp2Options options;
  options.reshard_after_forward = true;
  EXPECT_EQ(fsdp2_terms(two_blocks(), setup, options).traffic.gather_parameters, twice);
}

TEST(Fsdp2, HybridShardsInsideAReplica) {
  shardplan::Setup hybrid = stage3(8);
  hybrid.replicate = 4;
  EXPECT_EQ(bytes_of(fsdp2_terms(two_blocks(), hybrid, {}), "parameters: sharded, the master"),
            bytes_of(fsdp2_terms(two_blocks(), stage3(2), {}), "parameters: sharded, the master"));
}

TEST(Fsdp2, OffloadLeavesNoStateOnTheDevice) {
  Fsdp2Options options;
  options.offload = true;
  const Catalog catalog = two_blocks();
  const shardplan::Setup setup = stage3(2);
  const Report report = report_of(Engine::fsdp2, catalog, setup, fsdp2_terms(catalog, setup, options));
  const RankReport& rank = report.ranks.front();
  EXPECT_EQ(rank.device.model_states(), 0_B);
  // Shards of 20, 9 and 3 fp32 elements, each in a block of a power of two; parameters and gradients.
  EXPECT_EQ(rank.host.pinned->count(), 2 * (128 + 2 * (64 + 16)));
  EXPECT_EQ(rank.host.pageable->count(), 8 * (20 + 2 * 12));
}

TEST(Fsdp2, RefusesStagesThatDoNotShardParameters) {
  for (const int stage : {0, 1}) {
    shardplan::Setup setup = stage3(2);
    setup.stage = stage;
    test_support::expect_config_error([&] { fsdp2_terms(two_blocks(), setup, {}); }, "--zero", "", "expected 3");
  }
}

}  // namespace
}  // namespace shardplan
