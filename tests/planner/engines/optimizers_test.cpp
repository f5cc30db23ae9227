// Optimizers whose states follow shapes, in each engine: true sizes, or a refusal where the engine has none.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <fstream>
#include <sstream>

#include "planner/engines/deepspeed.h"
#include "planner/engines/fsdp2.h"
#include "planner/engines/layer_wise.h"
#include "planner/engines/megatron.h"
#include "planner/engines/megatron_fsdp.h"
#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

constexpr std::uint64_t kMatrix = 256 * 512;
constexpr std::uint64_t kVector = 512;

// Two blocks of a matrix and a vector.
Catalog blocks() {
  CatalogBuilder builder("blocks", "tensors");
  builder.add_run("layers", 0, 2,
                  {{.name = "a.w", .shape = {256, 512}, .dtype = std::nullopt},
                   {.name = "a.b", .shape = {512}, .dtype = std::nullopt}});
  return builder.finish();
}

Setup setup_of(OptimizerKind optimizer, int stage, std::uint64_t world = 2) {
  shardplan::Setup setup;
  setup.stage = stage;
  setup.world_size = world;
  setup.optimizer = optimizer;
  return setup;
}

Bytes bytes_of(const EngineTerms& terms, std::string_view name) {
  Bytes sum;
  for (const Term& term : terms.terms) {
    if (term.name == name) sum += term.bytes;
  }
  return sum;
}

std::uint64_t moments(Engine engine, const shardplan::Setup& setup, const EngineOptions& options = {}) {
  return bytes_of(terms_of(engine, blocks(), setup, options), "optimizer states: moments").count();
}

TEST(Optimizers, Fsdp2HoldsThemOfEachRanksRows) {
  // 128 of 256 rows, 256 of 512 elements.
  EXPECT_EQ(moments(Engine::fsdp2, setup_of(OptimizerKind::adafactor, 3)), 2 * 4 * (128 + 512 + 256));
  EXPECT_EQ(moments(Engine::fsdp2, setup_of(OptimizerKind::muon, 3)), 2 * 4 * (kMatrix / 2 + 2 * 256));
  // torchao: codes and a scale per 256 of both moments, 1 KiB of codes each; 256 elements stay in fp32.
  constexpr std::uint64_t kShard = kMatrix / 2;
  EXPECT_EQ(moments(Engine::fsdp2, setup_of(OptimizerKind::adam8bit, 3)),
            2 * (2 * kShard + 2 * 4 * kShard / 256 + 2 * 1024 + 2 * 4 * 256));
}

// torchao 0.18, asked on two shards of four: (32, 256) has codes and 32 scales, (26, 128) does not fill blocks of 256.
TEST(Optimizers, TorchaoQuantisesWholeBlocksOnly) {
  OptimizerChoice choice{.kind = OptimizerKind::adam8bit, .torchao = true};
  const Policy policy = policy_named("bf16-mixed");
  EXPECT_EQ(state_bytes({.shape = {32, 256}}, choice, policy).count(), 2U * (32 * 256 + 32 * 4 + 1024));
  EXPECT_EQ(state_bytes({.shape = {26, 128}}, choice, policy).count(), 2U * 26 * 128 * 4);
  EXPECT_EQ(state_bytes({.shape = {65, 65}}, choice, policy).count(), 2U * 65 * 65 * 4);  // 4225: large, not whole
  choice.torchao = false;
  EXPECT_EQ(state_bytes({.shape = {65, 65}}, choice, policy).count(), 2U * (65 * 65 + 17 * 4));
}

TEST(Optimizers, InTheBackwardOneUnitsGradientsAreThere) {
  shardplan::Setup setup = setup_of(OptimizerKind::adamw, 3);
  const EngineTerms after = fsdp2_terms(blocks(), setup, {});
  setup.optimizer_in_backward = true;
  const EngineTerms in_backward = fsdp2_terms(blocks(), setup, {});
  EXPECT_EQ(bytes_of(after, "gradients: sharded").count(), 2 * 4 * (kMatrix + kVector) / 2);
  EXPECT_EQ(bytes_of(in_backward, "gradients: sharded"), 0_B);
  EXPECT_EQ(bytes_of(in_backward, "gradients: sharded, of one unit").count(), 4 * (kMatrix + kVector) / 2);
  for (const Engine engine : {Engine::deepspeed, Engine::megatron}) {
    setup.stage = 1;
    expect_config_error([&] { terms_of(engine, blocks(), setup, {}); }, "--optimizer-in-backward", "",
                        "updates in its step");
  }
}

TEST(Optimizers, DeepSpeedHandsThemFlatPartitions) {
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::adafactor, 2)), 4 * 2 * (kMatrix + kVector) / 2);
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::adafactor, 3)), 4 * 2 * (kMatrix + kVector) / 2);
  constexpr std::uint64_t kPartition = kMatrix + kVector;  // of two blocks, half
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::adam8bit, 2)),
            2 * kPartition + 2 * 4 * kPartition / 256);
  // FP16_UnfusedOptimizer leaves tensors as they are.
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::adafactor, 0)), 2 * 4 * (256 + 512 + 512));
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::adam8bit, 0)),
            2 * (2 * kMatrix + 2 * 4 * kMatrix / 256 + 2 * 4 * kVector));
}

TEST(Optimizers, DeepSpeedKeepsMuonsMomentumIn16Bits) {
  EngineOptions options;
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::muon, 2)), 2 * kMatrix + 8 * kVector);
  options.deepspeed.reduce_scatter = false;
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::muon, 3), options), 2 * kMatrix + 8 * kVector);
  // Four ranks: partitions of half a matrix, each of which meets a whole one.
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::muon, 2, 4)), 2 * kMatrix + 2 * kVector * 8 / 4);
  // Three: the middle one meets both.
  EXPECT_EQ(moments(Engine::deepspeed, setup_of(OptimizerKind::muon, 2, 3)), 2 * 2 * kMatrix + 342 * 8);
}

TEST(Optimizers, DeepSpeedRefuses) {
  EngineOptions offload;
  offload.deepspeed.offload_optimizer.device = OffloadDevice::cpu;
  for (const OptimizerKind kind : {OptimizerKind::adafactor, OptimizerKind::adam8bit, OptimizerKind::muon}) {
    expect_config_error([&] { terms_of(Engine::deepspeed, blocks(), setup_of(kind, 2), offload); }, "--offload", "",
                        "");
  }
  expect_config_error([&] { terms_of(Engine::deepspeed, blocks(), setup_of(OptimizerKind::muon, 0), {}); },
                      "--optimizer", "", "expected --zero 1, 2 or 3");
  expect_config_error([&] { terms_of(Engine::deepspeed, blocks(), setup_of(OptimizerKind::muon, 3), {}); },
                      "zero_optimization", "reduce_scatter", "false");
}

TEST(Optimizers, MegatronRunsMuonAndNoOther) {
  // Without the distributed optimizer every rank updates all: momentum of matrices, two moments of vectors.
  EXPECT_EQ(moments(Engine::megatron, setup_of(OptimizerKind::muon, 0)), 2 * (4 * kMatrix + 8 * kVector));
  // With it each of two ranks has one matrix; vectors are shared out by elements.
  EXPECT_EQ(moments(Engine::megatron, setup_of(OptimizerKind::muon, 1)), 4 * kMatrix + 8 * kVector);
  // With three ranks one has nothing to do, but its part of the buffer is as long.
  const EngineTerms three = megatron_terms(blocks(), setup_of(OptimizerKind::muon, 1, 3), {});
  EXPECT_EQ(bytes_of(three, "parameters: buffer of whole matrices").count(), 2 * 3 * kMatrix);
  EXPECT_EQ(bytes_of(three, "optimizer states: moments").count(), 4 * kMatrix + 8 * 384);  // 1,024 padded to 3 x 384
  for (const OptimizerKind kind : {OptimizerKind::adafactor, OptimizerKind::adam8bit}) {
    expect_config_error([&] { megatron_terms(blocks(), setup_of(kind, 1), {}); }, "--optimizer", "", "expected adamw");
  }
  expect_config_error([&] { megatron_terms(blocks(), setup_of(OptimizerKind::muon, 3), {}); }, "--optimizer", "",
                      "without its FSDP");
  shardplan::Setup half = setup_of(OptimizerKind::muon, 1);
  half.policy = policy_named("fp16-mixed");
  expect_config_error([&] { megatron_terms(blocks(), half, {}); }, "--optimizer", "", "not in fp16");
}

// Megatron-LM's own layouts of 60 sets of matrices (tests/data/engines/make_megatron_goldens.py): difference 0.
TEST(MegatronLayouts, AreMegatronsOwn) {
  std::ifstream file(std::string(ENGINE_GOLDENS) + "/megatron.json");
  ASSERT_TRUE(file.good());
  std::stringstream text;
  text << file.rdbuf();
  const boost::json::value goldens = boost::json::parse(text.str());
  const auto number = [](const boost::json::value& value) { return value.to_number<std::uint64_t>(); };
  int cases = 0;
  for (const boost::json::value& golden : goldens.at("cases").as_array()) {
    SCOPED_TRACE(++cases);
    std::vector<WholeMatrix> matrices;
    std::vector<std::uint64_t> counts;
    for (const boost::json::value& shape : golden.at("shapes").as_array()) {
      matrices.push_back({.rows = number(shape.at(0)), .columns = number(shape.at(1))});
      counts.push_back(matrices.back().rows * matrices.back().columns);
    }
    const boost::json::value& size = golden.at("bucket_size");
    MegatronOptions options;
    options.pad_buckets_for_high_nccl_busbw = golden.at("bus_padding").as_bool();
    options.overlap_grad_reduce = !size.is_null();
    if (!size.is_null()) options.ddp_bucket_size = number(size);
    const std::uint64_t ranks = number(golden.at("ranks"));
    const LayerWiseLayout layout =
        layer_wise_layout(matrices, ranks, options.ddp_bucket_size, options.pad_buckets_for_high_nccl_busbw);
    EXPECT_EQ(layout.padded_elements, number(golden.at("layer_wise").at("padded")));
    EXPECT_EQ(layout.buckets, number(golden.at("layer_wise").at("buckets")));
    EXPECT_EQ(layout.most_elements, number(golden.at("layer_wise").at("most")));
    const MegatronBuffer buffer = megatron_buffer(counts, ranks, true, options);
    EXPECT_EQ(buffer.padded_elements, number(golden.at("distributed").at("padded")));
    EXPECT_EQ(buffer.buckets, number(golden.at("distributed").at("buckets")));
    std::vector<Shape> unit;
    for (const WholeMatrix& matrix : matrices) unit.push_back({matrix.rows, matrix.columns});
    for (const boost::json::value& length : golden.at("vectors").as_array()) unit.push_back({number(length)});
    EXPECT_EQ(megatron_fsdp_bucket(unit, ranks), number(golden.at("fsdp")));
  }
  EXPECT_EQ(cases, 60);
}

}  // namespace
}  // namespace shardplan
