// DeepSpeed: what each stage holds, where offload puts it, what it refuses; and its own estimators.
#include "planner/engines/deepspeed.h"

#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include "tests/support/catalogs.h"
#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

Catalog blocks(std::uint64_t count, std::uint64_t width) {
  CatalogBuilder builder("blocks", "tensors");
  builder.add_run("layers", 0, count,
                  {{.name = "a.w", .shape = {width, width}, .dtype = std::nullopt},
                   {.name = "a.b", .shape = {width}, .dtype = std::nullopt}});
  return builder.finish();
}

Setup setup_of(int stage, std::uint64_t world) {
  shardplan::Setup setup;
  setup.stage = stage;
  setup.world_size = world;
  return setup;
}

RankReport rank_of(const Catalog& catalog, const Setup& setup, const DeepSpeedOptions& options = {}) {
  EngineOptions engine;
  engine.deepspeed = options;
  return report_of(Engine::deepspeed, catalog, setup, deepspeed_terms(catalog, setup, engine)).ranks.front();
}

Bytes bytes_of(const EngineTerms& terms, const std::string& name) {
  Bytes sum;
  for (const Term& term : terms.terms) {
    if (term.name == name) sum += term.bytes;
  }
  return sum;
}

RC_GTEST_PROP(DeepSpeedLayout, ShardsCoverThePaddedWhole, ()) {
  const auto elements = *rc::gen::inRange<std::uint64_t>(0, 10'000'000);
  const auto ranks = *rc::gen::inRange<std::uint64_t>(1, 2000);
  const std::uint64_t flat = deepspeed_flat_elements(elements, ranks);
  RC_ASSERT(flat % ranks == 0 && flat >= elements && flat < elements + 2 * ranks);
  const std::uint64_t shard = deepspeed_shard_elements(elements, ranks);
  RC_ASSERT(shard * ranks >= elements && shard * ranks < elements + ranks);
  RC_ASSERT(deepspeed_shard_elements(elements, 1) == elements);
  RC_ASSERT(deepspeed_shard_elements(elements, ranks + 1) <= shard);
}

RC_GTEST_PROP(DeepSpeedLayout, SubGroupsHoldEveryTrainableShardOnce, ()) {
  const Catalog catalog = *test_support::any_catalog(test_support::Sizes::small);
  const shardplan::Setup setup = setup_of(3, *rc::gen::inRange<std::uint64_t>(1, 9));
  DeepSpeedOptions options;
  options.sub_group_size = *rc::gen::inRange<std::uint64_t>(1, 100'000);
  std::uint64_t shards = 0;
  std::uint64_t largest = 0;
  for_each_tensor(catalog, [&](const std::string&, const Tensor& tensor) {
    if (!tensor.tied_to.empty() || !tensor.trainable) return;
    const std::uint64_t shard = deepspeed_shard_elements(elements(tensor.shape), setup.world_size);
    shards += shard;
    largest = std::max(largest, shard);
  });
  std::uint64_t sum = 0;
  const std::vector<std::uint64_t> groups = deepspeed_sub_groups(catalog, setup, options);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    sum += groups[i];
    RC_ASSERT(groups[i] < options.sub_group_size + largest);
    RC_ASSERT(i + 1 == groups.size() || groups[i] >= options.sub_group_size);
  }
  RC_ASSERT(sum == shards);
}

RC_GTEST_PROP(DeepSpeedStages, LessIsHeldOnMoreRanks, ()) {
  const Catalog catalog = blocks(*rc::gen::inRange<std::uint64_t>(1, 5), *rc::gen::inRange<std::uint64_t>(1, 90));
  const auto stage = *rc::gen::inRange(1, 4);
  const auto ranks = *rc::gen::inRange<std::uint64_t>(1, 20);
  const auto states = [&](std::uint64_t world) { return rank_of(catalog, setup_of(stage, world)).device; };
  // Flat padding may be 2 elements a rank more; the optimizer's states have no other.
  RC_ASSERT(states(2 * ranks).optimizer_states <= states(ranks).optimizer_states + Bytes{24});
  RC_ASSERT(states(2 * ranks).model_states() <= states(ranks).model_states() + Bytes{24 + 8 * ranks});
}

TEST(DeepSpeedStages, OneRankHoldsItAll) {
  const Catalog catalog = blocks(3, 64);
  const std::uint64_t n = parameter_elements(catalog);
  for (const int stage : {0, 1, 2, 3}) {
    EXPECT_EQ(rank_of(catalog, setup_of(stage, 1)).device.model_states().count(), 16 * n) << stage;
  }
}

TEST(DeepSpeedStages, ZeROsStates) {
  const Catalog catalog = blocks(4, 64);
  const std::uint64_t n = parameter_elements(catalog);
  ASSERT_EQ(n % 16, 0U);
  const auto at = [&](int stage) { return rank_of(catalog, setup_of(stage, 8)).device; };
  EXPECT_EQ(at(1).model_states().count(), 2 * n + 2 * n + 12 * n / 8);
  EXPECT_EQ(at(2).model_states().count(), 2 * n + 2 * n / 8 + 12 * n / 8);
  EXPECT_EQ(at(3).model_states().count(), 16 * n / 8);
  // Between steps stages 1 and 2 have no gradients; stage 3 keeps their buffer and its bucket, and persistent tensors.
  EXPECT_EQ(at(1).allocated_after_step->count(), 2 * n + 12 * n / 8);
  EXPECT_EQ(at(2).allocated_after_step->count(), 2 * n + 12 * n / 8);
  EXPECT_EQ(at(3).allocated_after_step->count(), 16 * n / 8 + 2 * 500'000'000 + 2 * n);
}

TEST(DeepSpeedStages, PeaksHaveBucketsWhateverTheModelsSize) {
  const Catalog catalog = blocks(4, 64);
  DeepSpeedOptions options;
  EXPECT_EQ(rank_of(catalog, setup_of(2, 8)).device.at_peak.communication_buffers->count(),
            2 * (500'000'000 + 64 * 64));
  options.overlap_comm = true;
  EXPECT_EQ(rank_of(catalog, setup_of(2, 8), options).device.at_peak.communication_buffers->count(),
            2 * (2 * 500'000'000 + 64 * 64));
  options.reduce_bucket_size = 1000;
  options.overlap_comm = false;
  EXPECT_EQ(rank_of(catalog, setup_of(2, 8), options).device.peak_at, "the end of the backward");
  options.reduce_bucket_size = 1;
  EXPECT_EQ(rank_of(blocks(40, 64), setup_of(2, 2), options).device.peak_at, "the optimizer's update");
}

TEST(DeepSpeedStages, PersistentTensorsStayWhole) {
  const Catalog catalog = blocks(4, 64);
  DeepSpeedOptions options;
  options.stage3_param_persistence_threshold = 64;
  EXPECT_EQ(deepspeed_persistent(catalog, setup_of(3, 3), options).tensors, 4U);
  EXPECT_EQ(deepspeed_persistent(catalog, setup_of(3, 3), options).padded_elements, 4 * 66U);
  options.stage3_model_persistence_threshold = 130;  // two of 64
  EXPECT_EQ(deepspeed_persistent(catalog, setup_of(3, 3), options).tensors, 2U);
  options.stage3_param_persistence_threshold = 63;
  EXPECT_EQ(deepspeed_persistent(catalog, setup_of(3, 3), options).tensors, 0U);
}

TEST(DeepSpeedStages, ReuseDistanceDecidesWhatStaysGathered) {
  const Catalog catalog = blocks(100, 100);  // 100 x 10,100
  DeepSpeedOptions options;
  options.stage3_param_persistence_threshold = 0;
  options.stage3_prefetch_bucket_size = 50'000;
  options.stage3_max_reuse_distance = 400'000;
  EngineOptions engine;
  engine.deepspeed = options;
  const EngineTerms terms = deepspeed_terms(catalog, setup_of(3, 4), engine);
  EXPECT_EQ(bytes_of(terms, "gathered parameters: reused, computing, prefetched").count(),
            2 * (200'000 + 10'000 + 50'000));
  EngineOptions whole = engine;
  whole.deepspeed.stage3_max_reuse_distance = 1'000'000'000;
  EXPECT_EQ(
      bytes_of(deepspeed_terms(catalog, setup_of(3, 4), whole), "gathered parameters: reused, computing, prefetched")
          .count(),
      2 * parameter_elements(catalog));
}

TEST(DeepSpeedStages, FrozenTensorsAreWholeBelowStage3) {
  Catalog catalog = blocks(4, 64);
  freeze(catalog, "*.w");
  const std::uint64_t frozen = parameter_elements(catalog) - trainable_elements(catalog);
  const std::uint64_t trained = trainable_elements(catalog);
  EXPECT_EQ(rank_of(catalog, setup_of(2, 8)).device.model_states().count(),
            2 * frozen + 2 * trained + 14 * trained / 8);
  EXPECT_EQ(rank_of(catalog, setup_of(3, 8)).device.model_states().count(), 2 * frozen / 8 + 16 * trained / 8);
}

TEST(DeepSpeedStages, SecondCopiesAndMics) {
  const Catalog catalog = blocks(4, 64);
  const std::uint64_t n = parameter_elements(catalog);
  DeepSpeedOptions options;
  options.zero_hpz_partition_size = 4;
  EXPECT_EQ(rank_of(catalog, setup_of(3, 8), options).device.parameters.count(), 2 * n / 8 + 2 * n / 4);
  DeepSpeedOptions mics;
  mics.mics_shard_size = 2;
  EXPECT_EQ(rank_of(catalog, setup_of(3, 8), mics).device.model_states().count(), 16 * n / 2);
}

TEST(DeepSpeedOffload, Stage2) {
  const Catalog catalog = blocks(4, 64);  // 4 x 4,160
  const std::uint64_t n = parameter_elements(catalog);
  DeepSpeedOptions options;
  options.offload_optimizer.device = OffloadDevice::cpu;
  const RankReport rank = rank_of(catalog, setup_of(2, 8), options);
  EXPECT_EQ(rank.device.model_states().count(), 2 * n);
  // 2,080 elements: 8,320 B of masters and of gradients, 4,160 B of parameters, 8,192 B of one tensor, in powers of two.
  EXPECT_EQ(rank.host.pinned->count(), 2 * 16384 + 8192 + 8192U);
  EXPECT_EQ(rank.host.pageable->count(), 8 * n / 8);
  options.offload_optimizer.pin_memory = false;
  const RankReport pageable = rank_of(catalog, setup_of(2, 8), options);
  EXPECT_EQ(*pageable.host.pinned, 0_B);
  EXPECT_EQ(pageable.host.pageable->count(), (4 + 4 + 2 + 8) * n / 8 + 2 * 64 * 64);
  // Eight ranks build the model in fp32 before anything is sharded.
  EXPECT_EQ(pageable.host.initialization_peak->count(), 8 * 4 * n);
}

TEST(DeepSpeedOffload, Stage3) {
  const Catalog catalog = blocks(4, 64);
  const std::uint64_t n = parameter_elements(catalog);
  DeepSpeedOptions options;
  options.offload_optimizer.device = OffloadDevice::cpu;
  options.offload_param.device = OffloadDevice::cpu;
  const RankReport rank = rank_of(catalog, setup_of(3, 8), options);
  EXPECT_EQ(rank.device.model_states(), 0_B);
  EXPECT_EQ(rank.host.pageable->count(), 12 * n / 8);
  // 2,080 elements: fp32 gradients in one sub-group, bf16 gradients and bf16 parameters.
  EXPECT_EQ(rank.host.pinned->count(), 16384 + 8192 + 8192U);
}

TEST(DeepSpeedOffload, RatioLeavesTheFirstSubGroupsOnTheDevice) {
  const Catalog catalog = blocks(4, 64);
  DeepSpeedOptions options;
  options.offload_optimizer.device = OffloadDevice::cpu;
  options.offload_optimizer.ratio = 0.5;
  options.sub_group_size = 520;  // one block's shard on 8 ranks: 512 + 8
  ASSERT_EQ(deepspeed_sub_groups(catalog, setup_of(3, 8), options).size(), 4U);
  const RankReport rank = rank_of(catalog, setup_of(3, 8), options);
  EXPECT_EQ(rank.device.optimizer_states.count(), 12 * 2 * 520U);
  EXPECT_EQ(rank.host.pageable->count(), 12 * 2 * 520U);
}

TEST(DeepSpeedOffload, Files) {
  const Catalog catalog = blocks(2, 4096);
  const std::uint64_t n = parameter_elements(catalog);
  DeepSpeedOptions options;
  options.offload_optimizer.device = OffloadDevice::nvme;
  options.offload_param.device = OffloadDevice::nvme;
  const RankReport rank = rank_of(catalog, setup_of(3, 8), options);
  // Masters, moments and gradients of all; parameters of the matrices alone, a bias is below 1 MiB.
  EXPECT_EQ(rank.file->count(), 16 * n / 8 + 2 * 2 * 4096 * 4096 / 8);
  const std::uint64_t group = round_up(n / 8, 256);
  EXPECT_EQ(rank.host.pinned->count(), 4 * 4 * group                 // swap buffers of the optimizer
                                           + 2 * 5 * 100'000'256U    // of parameters, aligned to 1 KiB
                                           + 16777216 + 16777216U);  // parameters kept, bf16 gradients
  EXPECT_EQ(rank.device.model_states(), 0_B);
}

TEST(DeepSpeed, RefusesWhatDeepSpeedRefuses) {
  const Catalog catalog = blocks(1, 8);
  const auto refused = [&](int stage, const char* flag, const char* problem, auto set) {
    EngineOptions engine;
    set(engine.deepspeed);
    const auto act = [&] { deepspeed_terms(catalog, setup_of(stage, 8), engine); };
    expect_config_error(act, flag, "", problem);
  };
  refused(2, "--offload", "stage 3 only", [](DeepSpeedOptions& o) { o.offload_param.device = OffloadDevice::cpu; });
  refused(2, "--offload", "stage 3 only",
          [](DeepSpeedOptions& o) { o.offload_optimizer.device = OffloadDevice::nvme; });
  refused(0, "--offload", "expected --zero 1, 2 or 3",
          [](DeepSpeedOptions& o) { o.offload_optimizer.device = OffloadDevice::cpu; });
  refused(3, "--hpz", "does not divide", [](DeepSpeedOptions& o) { o.zero_hpz_partition_size = 3; });
  refused(2, "--hpz", "needs stage 3", [](DeepSpeedOptions& o) { o.zero_hpz_partition_size = 2; });
  refused(3, "--mics", "does not divide", [](DeepSpeedOptions& o) { o.mics_shard_size = 3; });
  refused(2, "--mics", "needs stage 3", [](DeepSpeedOptions& o) { o.mics_shard_size = 2; });
}

}  // namespace
}  // namespace shardplan
