// DeepSpeed: what each stage holds, where offload puts it, what it refuses; and its own estimators.
#include "planner/engines/deepspeed.h"

#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>
#include <algorithm>
#include <optional>

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
  const std::uint64_t n = parameter_elements(catalog);
  DeepSpeedOptions options;
  // The bucket, the gradient that is being computed, the flat copy that is all-reduced.
  EXPECT_EQ(rank_of(catalog, setup_of(2, 8)).device.at_peak.communication_buffers->count(),
            2 * (500'000'000 + 64 * 64 + n));
  options.overlap_comm = true;
  EXPECT_EQ(rank_of(catalog, setup_of(2, 8), options).device.at_peak.communication_buffers->count(),
            2 * (2 * 500'000'000 + 64 * 64 + n));
  options.reduce_bucket_size = 1000;
  options.overlap_comm = false;
  EXPECT_EQ(rank_of(catalog, setup_of(2, 8), options).device.peak_at, "the end of the backward");
  options.reduce_bucket_size = 1;
  EXPECT_EQ(rank_of(blocks(40, 64), setup_of(2, 2), options).device.peak_at, "the optimizer's update");
}

TEST(DeepSpeedWire, WhatABucketIsCopiedInto) {
  const Catalog catalog = blocks(4, 64);
  const std::uint64_t n = parameter_elements(catalog);
  const auto held = [&](const char* name, int stage, std::uint64_t world, const DeepSpeedOptions& options,
                        std::uint64_t context = 1) {
    shardplan::Setup setup = setup_of(stage, world);
    setup.parallel.context = context;
    EngineOptions engine;
    engine.deepspeed = options;
    return bytes_of(deepspeed_terms(catalog, setup, engine), name).count();
  };
  DeepSpeedOptions options;
  EXPECT_EQ(held("reduce bucket: its slices, flat", 2, 8, options), 2 * n);
  EXPECT_EQ(held("reduce bucket: its slices, flat", 2, 1, options), 0U);
  EXPECT_EQ(held("reduce bucket: in the wire's dtype", 2, 8, options), 0U);
  // With a context axis in fp32, unless the file says otherwise: at stages 1 and 2 even then.
  EXPECT_EQ(held("reduce bucket: in the wire's dtype", 2, 8, options, 2), 4 * n);
  EXPECT_EQ(held("gradients of a bucket: in the wire's dtype", 3, 8, options, 2), 4 * n);
  EXPECT_EQ(held("reduce-scatter input", 3, 8, options, 2), 4 * n);
  options.seq_parallel_communication_data_type = DType::bf16;
  EXPECT_EQ(held("reduce bucket: in the wire's dtype", 2, 8, options, 2), 4 * n);
  EXPECT_EQ(held("gradients of a bucket: in the wire's dtype", 3, 8, options, 2), 0U);
  EXPECT_EQ(held("reduce-scatter input", 3, 8, options, 2), 2 * n);
  options.communication_data_type = DType::f32;
  options.reduce_bucket_size = 1000;
  EXPECT_EQ(held("reduce bucket: in the wire's dtype", 1, 8, options), 4 * 1000U);
  EXPECT_EQ(held("all-reduce bucket: in the wire's dtype", 0, 8, options), 4 * n);
  options.use_multi_rank_bucket_allreduce = false;
  EXPECT_EQ(held("reduce bucket: its slices, flat", 2, 8, options), 0U);
  options.reduce_scatter = false;
  EXPECT_EQ(held("reduce-scatter input", 3, 8, options), 0U);
  EXPECT_EQ(held("all-reduced bucket, scaled", 3, 8, options), 4 * 1000U);
}

TEST(DeepSpeedWire, GradientsGoToTheirOwnerOnceWithoutTheAllReduce) {
  const Catalog catalog = blocks(4, 64);
  const auto sent = [&](const DeepSpeedOptions& options) {
    EngineOptions engine;
    engine.deepspeed = options;
    return deepspeed_terms(catalog, setup_of(2, 8), engine).traffic.reduce_gradients.count();
  };
  DeepSpeedOptions options;
  options.use_multi_rank_bucket_allreduce = false;
  EXPECT_EQ(sent({}), 2 * sent(options));
  options.reduce_scatter = false;
  EXPECT_EQ(sent({}), sent(options));
}

TEST(DeepSpeedDTypes, SettlingSaysWhatDeepSpeedDoes) {
  shardplan::Setup setup = setup_of(2, 8);
  DeepSpeedOptions options;
  settle_deepspeed(setup, options);
  EXPECT_EQ(setup.policy.gradient_accumulator, DType::bf16);
  EXPECT_EQ(setup.policy.wire, DType::bf16);
  options.grad_accum_dtype = DType::f32;
  options.communication_data_type = DType::f32;
  settle_deepspeed(setup, options);
  EXPECT_EQ(setup.policy.gradient, DType::f32);
  EXPECT_EQ(setup.policy.gradient_accumulator, DType::f32);
  EXPECT_EQ(setup.policy.wire, DType::f32);
  const shardplan::Setup once = setup;
  const DeepSpeedOptions options_once = options;
  settle_deepspeed(setup, options);
  EXPECT_EQ(setup, once);
  EXPECT_EQ(options, options_once);
}

TEST(DeepSpeedDTypes, WhatDeepSpeedRefuses) {
  const Catalog catalog = blocks(2, 64);
  const auto refuse = [&](const shardplan::Setup& setup, const std::string& flag, const std::string& problem) {
    expect_config_error([&] { deepspeed_terms(catalog, setup, {}); }, flag, "", problem);
  };
  shardplan::Setup setup = setup_of(0, 2);
  setup.policy = policy_named("bf16-mixed-fp32grad");
  refuse(setup, "--grad-dtype", "expected bf16, found fp32");
  setup = setup_of(2, 2);
  setup.policy = policy_named("bf16-fp32state");
  refuse(setup, "--offload", "masters in bf16 with moments in fp32 are CPU Adam's");
  EngineOptions offload;
  offload.deepspeed.offload_optimizer.device = OffloadDevice::cpu;
  offload.deepspeed.offload_optimizer.pin_memory = false;
  const EngineTerms terms = deepspeed_terms(catalog, setup, offload);
  const std::uint64_t partition = deepspeed_flat_elements(parameter_elements(catalog), 2) / 2;
  EXPECT_EQ(bytes_of(terms, "optimizer states: master").count(), 2 * partition);
  EXPECT_EQ(bytes_of(terms, "optimizer states: moments").count(), 8 * partition);
}

// partition_parameters.py, CUDAQuantizer.quantize, as it stands there.
std::optional<std::uint64_t> groups_by_search(std::uint64_t elements) {
  std::uint64_t groups = (elements + 7999) / 8000;
  while (groups < elements && elements % (8 * groups) != 0) ++groups;
  if (elements == 0 || elements % (8 * groups) != 0) return std::nullopt;
  while (elements % (16 * groups) == 0 && elements > 8000 * groups) groups *= 2;
  return groups;
}

TEST(DeepSpeedQuantized, GroupsAreCUDAQuantizers) {
  for (std::uint64_t elements = 0; elements < 10'000; ++elements) {
    ASSERT_EQ(deepspeed_quantization_groups(elements), groups_by_search(elements)) << elements;
  }
  for (const std::uint64_t elements : {4096ULL * 4096 / 8, 8ULL * 104'729, 32'000ULL * 4096 / 8}) {
    EXPECT_EQ(deepspeed_quantization_groups(elements), groups_by_search(elements)) << elements;
  }
}

TEST(DeepSpeedQuantized, FrozenShardsAreKeptInEightBits) {
  Catalog catalog = blocks(4, 64);
  freeze(catalog, "*.w");
  EngineOptions engine;
  engine.deepspeed.zero_quantized_nontrainable_weights = true;
  const EngineTerms terms = deepspeed_terms(catalog, setup_of(3, 8), engine);
  EXPECT_EQ(bytes_of(terms, "parameters: frozen shards in 8 bits").count(), 4 * (64 * 64 / 8 + 4));
  EXPECT_EQ(bytes_of(terms, "parameters: shards").count(), 4 * 2 * 64 / 8);
  freeze(catalog, "*.b");
  expect_config_error([&] { deepspeed_terms(catalog, setup_of(3, 16), engine); }, "zero_quantized_nontrainable_weights",
                      "", "a shard of a.b has 4 elements");
  engine.deepspeed.offload_param.device = OffloadDevice::cpu;
  expect_config_error([&] { deepspeed_terms(catalog, setup_of(3, 8), engine); }, "zero_quantized_nontrainable_weights",
                      "", "cannot be pinned");
}

TEST(DeepSpeedQuantized, LoCoKeepsTheErrorAmongNodes) {
  const Catalog catalog = blocks(4, 64);
  EngineOptions engine;
  engine.deepspeed.zero_quantized_gradients = true;
  engine.deepspeed.zeropp_loco = true;
  engine.gpus_per_node = 4;
  const EngineTerms two_nodes = deepspeed_terms(catalog, setup_of(3, 8), engine);
  EXPECT_EQ(bytes_of(two_nodes, "LoCo: the error of the last steps, in 8 bits").count(),
            4 * (64 * 64 + 4 * 64 + 64 * 64 / 4 + 4 * 64 / 4));
  EXPECT_EQ(bytes_of(two_nodes, "a gradient in 4 bits, sent and received").count(), 64 * 64U);
  EXPECT_EQ(bytes_of(two_nodes, "reduce-scatter input").count(), 0U);
  engine.gpus_per_node = 8;
  const EngineTerms one_node = deepspeed_terms(catalog, setup_of(3, 8), engine);
  EXPECT_EQ(bytes_of(one_node, "LoCo: the error of the last steps, in 8 bits").count(), 0U);
  EXPECT_EQ(bytes_of(one_node, "reduce-scatter input").count(), 2 * parameter_elements(catalog));
}

TEST(DeepSpeedStages, SequentialGathersNeedNoBuffer) {
  const Catalog catalog = blocks(8, 1024);
  EngineOptions engine;
  engine.deepspeed.stage3_max_reuse_distance = 0;
  EXPECT_GT(bytes_of(deepspeed_terms(catalog, setup_of(3, 8), engine), "all-gather buffer").count(), 0U);
  engine.deepspeed.stage3_allgather_sequential = true;
  const EngineTerms terms = deepspeed_terms(catalog, setup_of(3, 8), engine);
  EXPECT_EQ(bytes_of(terms, "all-gather buffer").count(), 0U);
  EXPECT_EQ(bytes_of(terms, "gathered parameters: reused, computing, prefetched").count(), 2 * (1024 * 1024 + 1));
}

TEST(DeepSpeedOffload, PipelinesNeedBuffers) {
  const Catalog catalog = blocks(8, 64);
  EngineOptions engine;
  engine.deepspeed.sub_group_size = 64 * 64;
  engine.deepspeed.offload_optimizer.device = OffloadDevice::nvme;
  engine.deepspeed.offload_optimizer.pipeline_read = true;
  const auto short_of_buffers = [&] {
    const EngineTerms terms = deepspeed_terms(catalog, setup_of(3, 1), engine);
    return std::count_if(terms.notes.begin(), terms.notes.end(), [](const std::string& note) {
      return note.find("buffer_count must be 8, not 4") != std::string::npos;
    });
  };
  EXPECT_EQ(short_of_buffers(), 1);
  engine.deepspeed.offload_optimizer.buffer_count = 8;
  EXPECT_EQ(short_of_buffers(), 0);
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
