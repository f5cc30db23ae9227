#include "planner/cost/compute.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "planner/formats/presets.h"

namespace shardplan {
namespace {

// 100 TFLOPS in 16 bit, 1 TB/s, nothing lost.
Cluster round_cluster() {
  Cluster cluster;
  cluster.gpu.name = "round";
  cluster.gpu.bf16_flops = 100'000'000'000'000;
  cluster.gpu.bandwidth_bytes_per_second = 1'000'000'000'000;
  cluster.efficiency = {.matmul = 1,
                        .fp8_matmul = 1,
                        .grouped = 1,
                        .attention_forward = 1,
                        .attention_backward = 1,
                        .memory = 1,
                        .kernel_seconds = 0};
  return cluster;
}

Model model_of(std::vector<ModuleRun> modules) {
  Model model;
  model.modules = std::move(modules);
  CatalogBuilder builder("test", "test");
  for (const ModuleRun& run : model.modules) {
    std::vector<Tensor> tensors;
    for (const Module& module : run.modules) {
      for (Tensor tensor : module.tensors) {
        tensor.name = name_of_tensor(module, tensor);
        tensors.push_back(tensor);
      }
    }
    builder.add_run(run.name, run.first_number, run.count, tensors);
  }
  model.catalog = builder.finish();
  return model;
}

Model one_unit(Modules modules) {
  return model_of({{.name = "block", .numbered = true, .count = 1, .modules = std::move(modules)}});
}

PassSeconds seconds_of(const Modules& modules, const Work& work, const Cluster& cluster = round_cluster()) {
  return sum(unit_seconds(one_unit(modules), work, cluster));
}

const Work kWork{.tokens = 4096, .sequence = 2048};

TEST(Compute, ALargeProductTakesItsArithmetic) {
  const Modules modules = linear("proj", 8192, 8192, false);
  const double one = 2.0 * 4096 * 8192 * 8192 / 100e12;
  EXPECT_DOUBLE_EQ(seconds_of(modules, kWork).forward, one);
  EXPECT_DOUBLE_EQ(seconds_of(modules, kWork).backward, 2 * one);
  Cluster half = round_cluster();
  half.efficiency.matmul = 0.5;
  half.efficiency.kernel_seconds = 1;
  EXPECT_DOUBLE_EQ(seconds_of(modules, kWork, half).backward, 2 * (2 * one + 1));
}

TEST(Compute, AThinProductTakesItsBytes) {
  const Modules modules = linear("proj", 4096, 64, false);
  EXPECT_DOUBLE_EQ(seconds_of(modules, kWork).forward, 2 * (4096.0 * (4096 + 64) + 4096 * 64) / 1e12);
  Work work = kWork;
  work.gradient = DType::f32;
  work.accumulates = true;  // read and written: 8 bytes per weight
  const double bytes = 2 * 4096.0 * (4096 + 64);
  EXPECT_DOUBLE_EQ(seconds_of(modules, work).backward, (bytes + 2 * 4096.0 * 64 + bytes + 8 * 4096.0 * 64) / 1e12);
}

TEST(Compute, RowsFillTiles) {
  Work work = kWork;
  work.tokens = 129;
  const Modules modules = linear("proj", 65536, 65536, false);
  const double of_129 = seconds_of(modules, work).forward;
  work.tokens = 256;
  EXPECT_DOUBLE_EQ(of_129, seconds_of(modules, work).forward);
}

TEST(Compute, FrozenPartsHaveNoGradients) {
  Model model = model_of({{.name = "a", .numbered = true, .count = 2, .modules = linear("proj", 8192, 8192, false)},
                          {.name = "b", .numbered = true, .count = 2, .modules = linear("proj", 8192, 8192, false)}});
  const double one = 2.0 * 4096 * 8192 * 8192 / 100e12;
  freeze(model.catalog, "b.*");
  EXPECT_DOUBLE_EQ(sum(unit_seconds(model, kWork, round_cluster())).backward, (2 * 2 + 2) * one);  // gradients pass b
  freeze(model.catalog, "a.0.*");
  const std::vector<UnitRunSeconds> runs = unit_seconds(model, kWork, round_cluster());
  EXPECT_DOUBLE_EQ(seconds_of_unit(runs, 0).backward, 0);  // nothing before it is trained
  EXPECT_DOUBLE_EQ(seconds_of_unit(runs, 1).backward, 2 * one);
  EXPECT_DOUBLE_EQ(seconds_of_unit(runs, 3).backward, one);
  EXPECT_DOUBLE_EQ(seconds_of_unit(runs, 0).forward, one);
}

TEST(Compute, CausalAttentionIsHalf) {
  const Modules modules = attention("core", {.heads = 32, .kv_heads = 8, .head_size = 128});
  const double pairs = 2.0 * 4096 * 2048 * 32;
  Work work = kWork;
  EXPECT_DOUBLE_EQ(seconds_of(modules, work).forward, pairs * 256 / 2 / 100e12);
  // No tensor, so nothing is trained here: put a weight before it.
  const Modules trained = join({linear("proj", 1, 1, false), modules});
  const PassSeconds alone = seconds_of(linear("proj", 1, 1, false), work);
  EXPECT_NEAR(seconds_of(trained, work).backward - alone.backward, 5 * pairs * 128 / 2 / 100e12, 1e-12);
  work.causal = false;
  EXPECT_DOUBLE_EQ(seconds_of(modules, work).forward, pairs * 256 / 100e12);
}

TEST(Compute, ElementsTakeTheirBytes) {
  EXPECT_DOUBLE_EQ(seconds_of(activation("act", "silu", 1024), kWork).forward, 2 * 2 * 4096 * 1024 / 1e12);
  const PassSeconds norm = seconds_of(rms_norm("norm", 1024), kWork);
  EXPECT_DOUBLE_EQ(norm.forward, 2 * 2 * 4096 * 1024 / 1e12);
  EXPECT_DOUBLE_EQ(norm.backward, 3 * 2 * 4096 * 1024 / 1e12);
  EXPECT_DOUBLE_EQ(seconds_of(multiply("gate", 1024), kWork).forward, 3 * 2 * 4096 * 1024 / 1e12);
}

TEST(Compute, ATokenPassesItsExpertsAlone) {
  const Routing routing{.experts = 8, .chosen = 2};
  const Modules experts = routed(repeated("experts", 8, linear("up", 8192, 8192, false)), routing);
  const double one = 2.0 * 4096 * 8192 * 8192 / 100e12;
  EXPECT_NEAR(seconds_of(experts, kWork).forward, 2 * one, 1e-12);
  Work shared = kWork;
  shared.expert_ranks = 4;  // two experts here, for the tokens of four
  EXPECT_NEAR(seconds_of(experts, shared).forward, 2 * one, 1e-12);
  shared.expert_load.imbalance = 1.5;
  EXPECT_NEAR(seconds_of(experts, shared).forward, 3 * one, 1e-12) << "the others wait for the most loaded rank";
  Work alone = kWork;
  alone.expert_load.imbalance = 1.5;
  EXPECT_NEAR(seconds_of(experts, alone).forward, 2 * one, 1e-12) << "whoever computes it, all is computed here";
}

TEST(Compute, ManySmallExpertsWasteTiles) {
  const Routing routing{.experts = 64, .chosen = 1};
  const Modules experts = routed(repeated("experts", 64, linear("up", 8192, 8192, false)), routing);
  Work work = kWork;
  work.tokens = 64 * 64;  // 64 rows each, of tiles of 128
  const double useful = 2.0 * 64 * 64 * 8192 * 8192 / 100e12;
  EXPECT_NEAR(seconds_of(experts, work).forward, 2 * useful, 1e-12);
  work.expert_ranks = 2;  // 128 rows each
  EXPECT_NEAR(seconds_of(experts, work).forward, useful, 1e-12);
}

// What passes a module is its own: a tower's patches, another length of keys; a run that no forward enters costs nothing.
TEST(Compute, ModulesHaveTheirOwnRows) {
  const double one = 2.0 * 1024 * 8192 * 8192 / 100e12;
  const Modules proj = linear("proj", 8192, 8192, false);
  const Model model = model_of({{.name = "a", .numbered = true, .count = 2, .modules = proj},
                                {.name = "b", .numbered = true, .count = 1, .modules = proj},
                                {.name = "c", .numbered = true, .count = 1, .modules = proj}});
  const RowsOfModules rows{{{.rows = 512}}, {{}}, {}};
  Work work = kWork;
  work.rows = &rows;
  work.samples = 2;
  const std::vector<UnitRunSeconds> runs = unit_seconds(model, work, round_cluster());
  EXPECT_DOUBLE_EQ(seconds_of_unit(runs, 0).forward, one);
  EXPECT_DOUBLE_EQ(seconds_of_unit(runs, 2).forward, 4 * one);  // not known: of the text
  EXPECT_DOUBLE_EQ(seconds_of_unit(runs, 3).forward, 0);

  const Model crossed = one_unit(attention("core", {.heads = 32, .kv_heads = 8, .head_size = 128}));
  const RowsOfModules both{{{.rows = 512, .keys = 1500, .causal = false}}};
  work.rows = &both;
  EXPECT_DOUBLE_EQ(sum(unit_seconds(crossed, work, round_cluster())).forward, 2.0 * 1024 * 1500 * 32 * 256 / 100e12);
}

TEST(Compute, TensorsAloneCostTwoFlopsEach) {
  CatalogBuilder builder("t", "tensors");
  builder.add_run("block", 0, 3, {{.name = "w", .shape = {8192, 8192}, .dtype = {}, .tied_to = {}}});
  Model model;
  model.catalog = builder.finish();
  const double one = 2.0 * 4096 * 8192 * 8192 / 100e12;
  EXPECT_DOUBLE_EQ(sum(unit_seconds(model, kWork, round_cluster())).forward, 3 * one);
  EXPECT_DOUBLE_EQ(sum(unit_seconds(model, kWork, round_cluster())).backward, 6 * one);
}

TEST(Compute, PassesOverMemory) {
  const Cluster cluster = round_cluster();
  const Policy policy = policy_named("bf16-mixed");
  // Gradient, master in and out, parameter out, moments in and out.
  EXPECT_DOUBLE_EQ(update_seconds(1'000'000, policy, OptimizerKind::adamw, cluster), 1e6 * (2 + 8 + 2 + 16) / 1e12);
  EXPECT_DOUBLE_EQ(update_seconds(1'000'000, policy_named("fp32"), OptimizerKind::sgd, cluster), 1e6 * 12 / 1e12);
  EXPECT_DOUBLE_EQ(cast_seconds(1'000'000, DType::f32, DType::bf16, cluster), 6e6 / 1e12);
  EXPECT_DOUBLE_EQ(accumulate_seconds(1'000'000, DType::bf16, DType::f32, cluster), 10e6 / 1e12);
  EXPECT_DOUBLE_EQ(norm_seconds(1'000'000, DType::f32, cluster), 4e6 / 1e12);
  EXPECT_DOUBLE_EQ(zero_seconds(1_MB, cluster), 1e6 / 1e12);
  EXPECT_DOUBLE_EQ(zero_seconds(0_B, cluster), 0);
}

TEST(Compute, WhatIsNotKnownIsAnError) {
  EXPECT_THROW(matmul_rate(round_cluster(), DType::f16), ConfigError);
  EXPECT_THROW(matmul_rate(round_cluster(), DType::f8_e4m3), ConfigError);
  Cluster slow = round_cluster();
  slow.gpu.bandwidth_bytes_per_second.reset();
  EXPECT_THROW(memory_rate(slow), ConfigError);
  Cluster fast = round_cluster();
  fast.fp8_flops = 200e12;
  EXPECT_DOUBLE_EQ(matmul_rate(fast, DType::f8_e4m3), 200e12);
}

}  // namespace
}  // namespace shardplan
