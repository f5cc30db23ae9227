// Megatron-LM: buffers, buckets and who holds what.
#include "planner/engines/megatron.h"

#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>
#include <numeric>

namespace shardplan {
namespace {

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
  setup.policy = policy_named("bf16-mixed-fp32grad");
  return setup;
}

Bytes states_of_rank(const Catalog& catalog, const Setup& setup, const MegatronOptions& options = {}) {
  return report_of(Engine::megatron, catalog, setup, megatron_terms(catalog, setup, options))
      .ranks.front()
      .device.model_states();
}

TEST(MegatronBuffer, ParametersStartAtMultiplesOf64AndGoInBackwards) {
  // 10 at 0, 5 at 64, 100 at 128; the end at a multiple of lcm(4, 128).
  const MegatronBuffer buffer = megatron_buffer({100, 5, 10}, 4, true, {});
  EXPECT_EQ(buffer.padded_elements, 256U);
  EXPECT_EQ(buffer.elements, 115U);
  EXPECT_EQ(buffer.buckets, 1U);
  // Forwards, 100 would end at 100, 5 start at 128, 10 at 192: the same 256; so an order that tells them apart.
  EXPECT_EQ(megatron_buffer({193, 1}, 1, true, {}).padded_elements, 384U);  // 1 at 0, 193 at 64 to 257
  EXPECT_EQ(megatron_buffer({1, 193}, 1, true, {}).padded_elements, 384U);  // 193 at 0, 1 at 256
  EXPECT_EQ(megatron_buffer({100, 5, 10}, 4, false, {}).padded_elements, 115U);
}

TEST(MegatronBuffer, BucketsEndWhereTheyAreFull) {
  MegatronOptions options;
  options.overlap_grad_reduce = true;
  options.ddp_bucket_size = 100;
  // Backwards: 60 + (64..) 60 = 124 >= 100: a bucket, padded to 128; then 30 from 128.
  const MegatronBuffer buffer = megatron_buffer({30, 60, 60}, 2, true, options);
  EXPECT_EQ(buffer.buckets, 2U);
  EXPECT_EQ(buffer.padded_elements, 256U);
  options.overlap_grad_reduce = false;
  EXPECT_EQ(megatron_buffer({30, 60, 60}, 2, true, options).buckets, 1U);
  options.pad_buckets_for_high_nccl_busbw = true;
  EXPECT_EQ(megatron_buffer({30, 60, 60}, 2, true, options).padded_elements, 65536U);
  EXPECT_EQ(megatron_buffer({30, 60, 60}, 3, true, options).padded_elements, 3 * 65536U);
}

RC_GTEST_PROP(MegatronBuffer, PaddingIsBounded, ()) {
  const auto sizes = *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(1, 5000));
  const auto ranks = *rc::gen::inRange<std::uint64_t>(1, 70);
  MegatronOptions options;
  options.overlap_grad_reduce = *rc::gen::arbitrary<bool>();
  options.ddp_bucket_size = *rc::gen::inRange<std::uint64_t>(1, 20000);
  const MegatronBuffer buffer = megatron_buffer(sizes, ranks, true, options);
  const std::uint64_t multiple = std::lcm(ranks, std::uint64_t{128});
  RC_ASSERT(buffer.elements == std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0}));
  RC_ASSERT(buffer.padded_elements % ranks == 0);
  RC_ASSERT(buffer.padded_elements >= buffer.elements);
  RC_ASSERT(buffer.padded_elements <= buffer.elements + 63 * sizes.size() + (multiple - 1) * buffer.buckets);
  RC_ASSERT(megatron_buffer(sizes, ranks, false, options).padded_elements == buffer.elements);
}

TEST(Megatron, EighteenBytesOrSixAndTwelveOverN) {
  const Catalog catalog = blocks(4, 256);
  const std::uint64_t n = parameter_elements(catalog);
  EXPECT_EQ(states_of_rank(catalog, setup_of(0, 8)).count(), 18 * n);
  EXPECT_EQ(n % 1024, 0U);  // so nothing is padded
  EXPECT_EQ(states_of_rank(catalog, setup_of(1, 8)).count(), 6 * n + 12 * n / 8);
  EXPECT_EQ(states_of_rank(catalog, setup_of(1, 1)).count(), 18 * n);
  MegatronOptions bf16;
  bf16.main_grads_dtype = DType::bf16;
  EXPECT_EQ(states_of_rank(catalog, setup_of(1, 8), bf16).count(), 4 * n + 12 * n / 8);
}

// A unit of 256 rows of 256 and 256 more elements is 257 chunks; of eight ranks each has 33, so the unit has 264.
TEST(Megatron, ItsFsdpShardsWhatItsStrategySays) {
  const Catalog catalog = blocks(4, 256);
  constexpr std::uint64_t kUnpadded = 4 * 257 * 256;
  constexpr std::uint64_t n = 4 * 264 * 256;
  EXPECT_EQ(parameter_elements(catalog), kUnpadded);
  EXPECT_EQ(states_of_rank(catalog, setup_of(2, 8)).count(), 2 * n + (4 + 12) * n / 8);
  EXPECT_EQ(states_of_rank(catalog, setup_of(3, 8)).count(), 18 * n / 8);
  MegatronOptions options;
  options.data_parallel_sharding_strategy = MegatronSharding::no_shard;
  EXPECT_EQ(states_of_rank(catalog, setup_of(0, 8), options).count(), 18 * kUnpadded);
  options.data_parallel_sharding_strategy = MegatronSharding::optim;
  EXPECT_EQ(states_of_rank(catalog, setup_of(0, 8), options).count(), 6 * n + 12 * n / 8);
}

// What is outside of units is gathered and stays; units are gathered as far as 5e8 elements ahead: here, all.
TEST(Megatron, ItsFsdpKeepsWhatIsOutsideOfUnits) {
  CatalogBuilder builder("model", "tensors");
  builder.begin_unit("embedding");
  builder.add({.name = "embed.weight", .shape = {1024, 64}, .dtype = std::nullopt});
  builder.add_run("layers", 0, 3, {{.name = "a.w", .shape = {64, 64}, .dtype = std::nullopt}});
  const Catalog catalog = builder.finish();
  const auto bytes = [&](const char* name, const MegatronOptions& options) {
    Bytes sum;
    for (const Term& term : megatron_terms(catalog, setup_of(3, 4), options).terms) {
      if (term.name == name) sum += term.bytes;
    }
    return sum.count();
  };
  EXPECT_EQ(bytes("gathered parameters: outside of units", {}), 2U * 1024 * 64);
  EXPECT_EQ(bytes("gathered parameters: units", {}), 2U * 3 * 64 * 64);
  EXPECT_EQ(bytes("gradients of buckets on their way", {}), 4U * (1024 * 64 + 3 * 64 * 64));
  MegatronOptions twice;
  twice.fsdp_double_buffer = true;
  EXPECT_EQ(bytes("gathered parameters: units", twice), 2U * 2 * 64 * 64);
  MegatronOptions little;
  little.suggested_communication_unit_size = 2 * 1000;
  EXPECT_EQ(bytes("gathered parameters: units", little), 2U * (2 * 64 * 64 + 1000));
}

TEST(Megatron, PrecisionAwareOptimizer) {
  const Catalog catalog = blocks(4, 256);
  const std::uint64_t n = parameter_elements(catalog);
  MegatronOptions options;
  options.use_precision_aware_optimizer = true;
  options.exp_avg_dtype = DType::bf16;
  options.exp_avg_sq_dtype = DType::bf16;
  EXPECT_EQ(states_of_rank(catalog, setup_of(1, 8), options).count(), 6 * n + (2 + 2 + 2) * n / 8);
  options.store_param_remainders = false;
  EXPECT_EQ(states_of_rank(catalog, setup_of(1, 8), options).count(), 6 * n + (4 + 2 + 2) * n / 8);
}

TEST(Megatron, GradientsIn16BitsAreCopiedForTheUpdate) {
  const Catalog catalog = blocks(4, 256);
  MegatronOptions options;
  const auto copies = [&] {
    Bytes sum;
    for (const Term& term : megatron_terms(catalog, setup_of(1, 8), options).terms) {
      if (term.span == Span::update) sum += term.bytes;
    }
    return sum.count();
  };
  EXPECT_EQ(copies(), 0U);
  options.main_grads_dtype = DType::bf16;
  EXPECT_EQ(copies(), 4 * parameter_elements(catalog) / 8);
  options.use_precision_aware_optimizer = true;
  EXPECT_EQ(copies(), 0U);
}

TEST(Megatron, ExpertsHaveTheirOwnDataRanks) {
  Catalog catalog = blocks(4, 256);
  catalog.runs.front().tensors.front().expert = true;
  shardplan::Setup setup = setup_of(1, 8);
  setup.parallel.expert = 4;
  const std::uint64_t experts = 4 * 256 * 256;
  const std::uint64_t rest = 4 * 256;
  EXPECT_EQ(states_of_rank(catalog, setup).count(), 6 * (experts + rest) + 12 * experts / 2 + 12 * rest / 8);
}

TEST(Megatron, TheOptimizersOffloadedFractionIsOnTheHost) {
  const Catalog catalog = blocks(4, 256);
  MegatronOptions options;
  options.optimizer_cpu_offload = true;
  options.optimizer_offload_fraction = 0.5;
  const shardplan::Setup setup = setup_of(1, 8);
  const Report report = report_of(Engine::megatron, catalog, setup, megatron_terms(catalog, setup, options));
  const std::uint64_t n = parameter_elements(catalog);
  EXPECT_EQ(report.ranks.front().device.optimizer_states.count(), 6 * n / 8);
  EXPECT_EQ(report.ranks.front().host.pinned->count(), 6 * n / 8);
}

}  // namespace
}  // namespace shardplan
