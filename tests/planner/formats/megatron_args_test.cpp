#include "planner/formats/megatron_args.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdlib>
#include <iostream>

#include "planner/formats/file.h"
#include "planner/formats/presets.h"
#include "planner/parallel.h"
#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

constexpr const char* kSmall = R"(
num-layers: 2
hidden-size: 64
num-attention-heads: 4
max-position-embeddings: 32
vocab-size: 1000
)";

MegatronRun read(const std::string& more, const std::string& base = kSmall) {
  return read_megatron_args(base + more, "args.yaml");
}

template <typename T>
std::optional<T> value(const Saying<T>& said) {
  return said ? std::optional<T>(said->value) : std::nullopt;
}

std::optional<Shape> shape_of(const Model& model, const std::string& name) {
  std::optional<Shape> shape;
  for_each_tensor(model.catalog, [&](const std::string& whole, const Tensor& tensor) {
    if (whole == name) shape = tensor.shape;
  });
  return shape;
}

bool has_note(const TrainingConfig& config, const std::string& part) {
  return std::any_of(config.notes.begin(), config.notes.end(),
                     [&](const std::string& note) { return note.find(part) != std::string::npos; });
}

// By hand: word and position embeddings; per layer two norms of 2h, qkv 3h(h+1), projection h(h+1), MLP 4h(h+1) + h(4h+1);
// a last norm; the head is tied.
TEST(MegatronArgs, GptByHand) {
  const Model model = read("").model;
  constexpr std::uint64_t h = 64;
  constexpr std::uint64_t layer = 4 * h + 3 * h * (h + 1) + h * (h + 1) + 4 * h * (h + 1) + h * (4 * h + 1);
  EXPECT_EQ(parameter_elements(model.catalog), 1000 * h + 32 * h + 2 * layer + 2 * h);
  EXPECT_EQ(shape_of(model, "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight"), Shape{h});
  EXPECT_EQ(shape_of(model, "decoder.layers.1.self_attention.linear_qkv.weight"), (Shape{3 * h, h}));
  EXPECT_EQ(shape_of(model, "decoder.layers.0.mlp.linear_fc1.weight"), (Shape{4 * h, h}));
  EXPECT_EQ(shape_of(model, "decoder.layers.0.mlp.linear_fc2.bias"), Shape{h});
  EXPECT_EQ(shape_of(model, "decoder.final_layernorm.bias"), Shape{h});
  EXPECT_EQ(model.catalog.name, "args.yaml");
  EXPECT_EQ(model.catalog.family, "megatron-gpt");
}

// The pieces on each rank follow from the layout.
TEST(MegatronArgs, PipelineLayouts) {
  const auto read_layout = [](const std::string& layout) {
    return read("pipeline-model-parallel-size: 2\npipeline-model-parallel-layout: '" + layout + "'\n").config;
  };
  const TrainingConfig config = read_layout("Et||t|L");
  EXPECT_EQ(value(config.piece_layers), (std::vector<std::uint64_t>{1, 0, 1, 0}));
  EXPECT_EQ(value(config.virtual_stages), 2U);
  for (const auto& [layout, part] : {std::pair{"Et|t|L", "pieces for each of 2 stages, found 3"},
                                     {"Et|tm|", "expected L"},
                                     {"Ettm|L", "multi-token prediction"}}) {
    try {
      read_layout(layout);
      ADD_FAILURE() << layout;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

TEST(MegatronArgs, TheLocalImplementationHasItsNormsApart) {
  const Model model = read("transformer-impl: local").model;
  EXPECT_EQ(shape_of(model, "decoder.layers.0.input_layernorm.weight"), Shape{64});
  EXPECT_EQ(shape_of(model, "decoder.layers.0.pre_mlp_layernorm.bias"), Shape{64});
  EXPECT_EQ(parameter_elements(model.catalog), parameter_elements(read("").model.catalog));
}

// validate_args: int((4 h 2/3) / 64) 64.
TEST(MegatronArgs, SwigluRoundsItsWidthDownTo64) {
  const std::pair<std::uint64_t, std::uint64_t> cases[] = {{64, 128}, {512, 1344}, {4096, 10880}, {768, 2048}};
  for (const auto& [hidden, ffn] : cases) {
    const std::string text = "swiglu: true\nhidden-size: " + std::to_string(hidden) +
                             "\nnum-layers: 1\nnum-attention-heads: 4\nmax-position-embeddings: 8\nvocab-size: 10\n";
    const MegatronRun run = read(text, "");
    EXPECT_EQ(run.sizes.ffn, ffn) << hidden;
    EXPECT_EQ(shape_of(run.model, "decoder.layers.0.mlp.linear_fc1.weight"), (Shape{2 * ffn, hidden}));
    EXPECT_EQ(shape_of(run.model, "decoder.layers.0.mlp.linear_fc2.weight"), (Shape{hidden, ffn}));
  }
}

// Llama-3-8B and Mixtral-8x7B as Megatron builds them have the parameters of their presets.
TEST(MegatronArgs, PublishedModels) {
  const std::string llama = R"(
num-layers: 32
hidden-size: 4096
ffn-hidden-size: 14336
num-attention-heads: 32
group-query-attention: true
num-query-groups: 8
max-position-embeddings: 8192
vocab-size: 128256
swiglu: true
normalization: RMSNorm
disable-bias-linear: true
untie-embeddings-and-output-weights: true
position-embedding-type: rope
)";
  EXPECT_EQ(parameter_elements(read(llama, "").model.catalog), 8'030'261'248U);
  const std::string mixtral = R"(
--num-layers: 32
--hidden-size: 4096
--ffn-hidden-size: 14336
--num-attention-heads: 32
--group-query-attention: true
--num-query-groups: 8
--max-position-embeddings: 32768
--vocab-size: 32000
--swiglu: true
--normalization: RMSNorm
--disable-bias-linear: true
--untie-embeddings-and-output-weights: true
--position-embedding-type: rope
--num-experts: 8
--moe-router-topk: 2
--moe-grouped-gemm: true
)";
  const Model model = read(mixtral, "").model;
  EXPECT_EQ(parameter_elements(model.catalog), 46'702'792'704U);
  EXPECT_EQ(model.catalog.active_parameters, 12'879'925'248U);
  EXPECT_EQ(shape_of(model, "decoder.layers.31.mlp.experts.linear_fc1.weight7"), (Shape{28672, 4096}));
}

TEST(MegatronArgs, Experts) {
  const std::string experts =
      "num-experts: 4\nmoe-ffn-hidden-size: 96\nmoe-layer-freq: '([0]*1+[1]*1)'\n"
      "moe-shared-expert-intermediate-size: 48\ndisable-bias-linear: true\n"
      "moe-router-enable-expert-bias: true\nmoe-shared-expert-gate: true\n";
  const Model sequential = read(experts).model;
  EXPECT_FALSE(shape_of(sequential, "decoder.layers.0.mlp.router.weight"));
  EXPECT_EQ(shape_of(sequential, "decoder.layers.0.mlp.linear_fc1.weight"), (Shape{256, 64}));
  EXPECT_EQ(shape_of(sequential, "decoder.layers.1.mlp.router.weight"), (Shape{4, 64}));
  EXPECT_EQ(shape_of(sequential, "decoder.layers.1.pre_mlp_layernorm.weight"), Shape{64});
  EXPECT_EQ(shape_of(sequential, "decoder.layers.1.mlp.experts.local_experts.3.linear_fc2.weight"), (Shape{64, 96}));
  EXPECT_EQ(shape_of(sequential, "decoder.layers.1.mlp.shared_experts.linear_fc1.weight"), (Shape{48, 64}));
  EXPECT_EQ(shape_of(sequential, "decoder.layers.1.mlp.shared_experts.gate_weight"), (Shape{1, 64}));
  ASSERT_EQ(sequential.catalog.buffers.size(), 1U);
  EXPECT_EQ(sequential.catalog.buffers[0].name, "decoder.layers.1.mlp.router.expert_bias");
  const Model grouped = read(experts + "moe-grouped-gemm: true\n").model;
  EXPECT_EQ(shape_of(grouped, "decoder.layers.1.mlp.experts.linear_fc2.weight3"), (Shape{64, 96}));
  EXPECT_EQ(parameter_elements(grouped.catalog), parameter_elements(sequential.catalog));

  // A rank of two has two experts whole, whatever they are called; with two ranks for each expert, their halves.
  for (const Model* model : {&sequential, &grouped}) {
    shardplan::Setup setup;
    setup.world_size = 2;
    setup.parallel.tensor = 2;
    setup.parallel.expert = 2;
    setup.parallel.expert_tensor = 1;
    const std::uint64_t apart =
        parameter_elements(split_by_data_axis(kinds_of_ranks(*model, setup)[0].catalog).experts);
    EXPECT_EQ(apart, 2U * (96 * 64 + 64 * 96));
    setup.parallel.expert_tensor = 2;
    const std::uint64_t halves =
        parameter_elements(split_by_data_axis(kinds_of_ranks(*model, setup)[0].catalog).experts);
    EXPECT_EQ(halves, 2U * (96 * 64 + 64 * 96) / 2);
  }
}

TEST(MegatronArgs, LayersWithExperts) {
  const auto layers = [](const std::string& freq) {
    const std::string text = "num-experts: 2\nmoe-layer-freq: " + freq + "\n";
    return read(text, "num-layers: 6\nhidden-size: 64\nnum-attention-heads: 4\nmax-position-embeddings: 8\n")
        .sizes.experts->layers;
  };
  using Layers = std::vector<bool>;
  EXPECT_EQ(layers("1"), Layers{});
  EXPECT_EQ(layers("2"), (Layers{true, false, true, false, true, false}));
  EXPECT_EQ(layers("'2'"), (Layers{true, false, true, false, true, false}));
  EXPECT_EQ(layers("'([0]*2+[1]*4)'"), (Layers{false, false, true, true, true, true}));
  EXPECT_EQ(layers("'([1]*2+[0]*1)*2'"), (Layers{true, true, false, true, true, false}));
  EXPECT_EQ(layers("'[0] + [1,1,1,1,1]'"), (Layers{false, true, true, true, true, true}));
  EXPECT_EQ(layers("[0, 1, 1, 1, 1, 1]"), (Layers{false, true, true, true, true, true}));
  for (const char* wrong : {"'[0]*5'", "'([0]*7)'", "'[0]*'", "'([0]'", "'[2]*6'", "'[0]*99999999999999999999'",
                            "'[0]*3+[1]*3 x'", "'(((((((((((((((((((((((((((((((((([0]))))))))))'"}) {
    EXPECT_THROW(layers(wrong), ConfigError) << wrong;
  }
}

// DeepSeek-V3's attention: q 7168 x 1536 and 1536 x 128 x 192; kv 7168 x 576 and 512 x 128 x 256; out 128 x 128 x 7168.
TEST(MegatronArgs, LatentAttention) {
  const MegatronRun run = read(R"(
multi-latent-attention: true
q-lora-rank: 48
kv-lora-rank: 24
qk-head-dim: 16
qk-pos-emb-head-dim: 8
v-head-dim: 12
qk-layernorm: true
normalization: RMSNorm
position-embedding-type: rope
disable-bias-linear: true
)");
  const std::string attention = "decoder.layers.0.self_attention.";
  EXPECT_EQ(shape_of(run.model, attention + "linear_q_down_proj.weight"), (Shape{48, 64}));
  EXPECT_EQ(shape_of(run.model, attention + "linear_q_up_proj.weight"), (Shape{4 * 24, 48}));
  EXPECT_EQ(shape_of(run.model, attention + "linear_q_up_proj.layer_norm_weight"), Shape{48});
  EXPECT_EQ(shape_of(run.model, attention + "linear_kv_down_proj.weight"), (Shape{32, 64}));
  EXPECT_EQ(shape_of(run.model, attention + "linear_kv_up_proj.weight"), (Shape{4 * 28, 24}));
  EXPECT_EQ(shape_of(run.model, attention + "linear_proj.weight"), (Shape{64, 48}));
  EXPECT_EQ(shape_of(run.model, "decoder.layers.0.input_layernorm.weight"), Shape{64});
  shardplan::Setup setup;
  setup.parallel.tensor = 2;
  const Catalog rank = kinds_of_ranks(run.model, setup)[0].catalog;
  const Model half{.catalog = rank, .architecture = {}, .modules = {}};
  EXPECT_EQ(shape_of(half, attention + "linear_q_up_proj.weight"), (Shape{2 * 24, 48}));
  EXPECT_EQ(shape_of(half, attention + "linear_q_down_proj.weight"), (Shape{48, 64}));
  EXPECT_EQ(shape_of(half, attention + "linear_kv_up_proj.weight"), (Shape{2 * 28, 24}));
}

TEST(MegatronArgs, PredictionLayersAreOnTheLastStageWithAnEmbeddingOfTheirOwn) {
  const MegatronRun run = read(
      "mtp-num-layers: 1\nposition-embedding-type: rope\nuntie-embeddings-and-output-weights: true\n"
      "disable-bias-linear: true\nnormalization: RMSNorm\n");
  EXPECT_EQ(shape_of(run.model, "mtp.layers.0.eh_proj.weight"), (Shape{64, 128}));
  EXPECT_EQ(shape_of(run.model, "mtp.layers.0.mtp_model_layer.mlp.linear_fc2.weight"), (Shape{64, 256}));
  constexpr std::uint64_t layer = 12 * 64 * 64 + 2 * 64;
  EXPECT_EQ(parameter_elements(run.model.catalog), 2 * 1000 * 64 + 3 * layer + 2 * 64 * 64 + 4 * 64);
  shardplan::Setup setup;
  setup.parallel.pipeline = 2;
  const auto kinds = kinds_of_ranks(run.model, setup);
  EXPECT_EQ(parameter_elements(kinds[0].catalog), 1000 * 64 + layer);
  EXPECT_EQ(parameter_elements(kinds[1].catalog), 2 * 1000 * 64 + 2 * layer + 2 * 64 * 64 + 4 * 64);
}

TEST(MegatronArgs, BertT5AndHybrid) {
  const MegatronRun bert = read_megatron_args(
      R"({"script": "pretrain_bert.py", "world_size": 8, "args": {"num-layers": 2, "hidden-size": 64,
          "num-attention-heads": 4, "max-position-embeddings": 32, "vocab-size": 1000}})",
      "bert.json");
  EXPECT_EQ(bert.sizes.kind, MegatronKind::bert);
  EXPECT_EQ(value(bert.config.world_size), 8U);
  EXPECT_EQ(shape_of(bert.model, "embedding.tokentype_embeddings.weight"), (Shape{2, 64}));
  EXPECT_EQ(shape_of(bert.model, "output_layer.bias"), Shape{1000});
  EXPECT_EQ(shape_of(bert.model, "pooler.dense.weight"), (Shape{64, 64}));
  EXPECT_EQ(shape_of(bert.model, "encoder.layers.1.mlp.linear_fc1.bias"), Shape{256});

  const MegatronRun t5 = read(
      "decoder-seq-length: 16\nencoder-seq-length: 32\nencoder-num-layers: 3\n"
      "decoder-num-layers: 2\n",
      "hidden-size: 64\nnum-attention-heads: 4\nmax-position-embeddings: 32\n"
      "vocab-size: 900\nvocab-extra-ids: 100\n");
  EXPECT_EQ(t5.sizes.kind, MegatronKind::t5);
  EXPECT_EQ(t5.sizes.vocabulary, 1000U);
  EXPECT_EQ(value(t5.config.sequence), 32U);
  EXPECT_EQ(shape_of(t5.model, "decoder.layers.1.cross_attention.linear_kv.weight"), (Shape{128, 64}));
  EXPECT_EQ(shape_of(t5.model, "encoder.layers.2.self_attention.linear_qkv.weight"), (Shape{192, 64}));
  EXPECT_EQ(shape_of(t5.model, "lm_head.output_layer.bias"), Shape{1000});

  const MegatronRun hybrid = read(
      "hybrid-layer-pattern: 'M*-E/*E'\nnum-experts: 2\nmamba-head-dim: 16\nmamba-num-groups: 2\n"
      "mamba-state-dim: 8\nposition-embedding-type: none\nuntie-embeddings-and-output-weights: true\n");
  EXPECT_EQ(hybrid.sizes.layers, 4U);
  // z, x, B, C, dt: 2 x 128 + 2 x 2 x 8 + 8 heads.
  EXPECT_EQ(shape_of(hybrid.model, "decoder.layers.0.mixer.in_proj.weight"), (Shape{296, 64}));
  EXPECT_EQ(shape_of(hybrid.model, "decoder.layers.0.mixer.conv1d_weight"), (Shape{160, 1, 4}));
  EXPECT_EQ(shape_of(hybrid.model, "decoder.layers.1.self_attention.linear_proj.weight"), (Shape{64, 64}));
  EXPECT_EQ(shape_of(hybrid.model, "decoder.layers.3.mlp.experts.linear_fc1.weight1"), (Shape{256, 64}));
  EXPECT_EQ(shape_of(hybrid.model, "mtp.layers.0.mtp_model_layer.layers.1.mlp.router.weight"), (Shape{2, 64}));
  EXPECT_EQ(shape_of(hybrid.model, "decoder.final_norm.weight"), Shape{64});
}

TEST(MegatronArgs, SetUp) {
  const TrainingConfig config = read(R"(
tensor-model-parallel-size: 2
pipeline-model-parallel-size: "2"
num-layers-per-virtual-pipeline-stage: 1
sequence-parallel: true
context-parallel-size: 4
micro-batch-size: 2
global-batch-size: 64
seq-length: 32
bf16: true
use-distributed-optimizer: true
overlap-grad-reduce: true
overlap-param-gather: true
ddp-bucket-size: 1000000
use-precision-aware-optimizer: true
exp-avg-dtype: bf16
optimizer-cpu-offload: true
optimizer-offload-fraction: '0.5'
recompute-granularity: full
recompute-method: uniform
recompute-num-layers: 1
lr: 1e-4
save: /checkpoints
num-workerz: 3
nccl-ub: true
swiglu: false
)")
                                    .config;
  EXPECT_EQ(value(config.engine), Engine::megatron);
  EXPECT_EQ(value(config.stage), 1);
  EXPECT_EQ(value(config.precision), "bf16-mixed-fp32grad");
  EXPECT_EQ(value(config.tensor), 2U);
  EXPECT_EQ(value(config.pipeline), 2U);
  EXPECT_EQ(value(config.virtual_stages), 1U);
  EXPECT_EQ(value(config.context), 4U);
  EXPECT_EQ(value(config.sequence_parallel), true);
  EXPECT_EQ(value(config.micro_batch), 2U);
  EXPECT_EQ(value(config.global_batch), 64U);
  EXPECT_EQ(value(config.vocabulary_multiple), 128U);
  EXPECT_EQ(value(config.recompute), Recompute::full);
  const MegatronOptions& options = *config.megatron;
  EXPECT_TRUE(options.overlap_grad_reduce);
  EXPECT_EQ(options.ddp_bucket_size, 1'000'000U);
  EXPECT_EQ(options.exp_avg_dtype, DType::bf16);
  EXPECT_EQ(options.optimizer_offload_fraction, 0.5);
  EXPECT_TRUE(has_note(config, "arguments that decide no bytes: lr, overlap-param-gather, save"));
  EXPECT_TRUE(has_note(config, "num-workerz is not known here and not used"));
  EXPECT_TRUE(has_note(config, "nccl-ub changes memory and is not counted"));
}

TEST(MegatronArgs, GradientsAndSharding) {
  const auto of = [](const std::string& more) { return read(more).config; };
  EXPECT_EQ(value(of("").precision), "fp32");
  EXPECT_EQ(of("fp16: true").megatron->main_grads_dtype, DType::f16);
  EXPECT_EQ(of("fp16: true\naccumulate-allreduce-grads-in-fp32: true").megatron->main_grads_dtype, DType::f32);
  EXPECT_EQ(of("bf16: true\ngrad-reduce-in-bf16: true").megatron->main_grads_dtype, DType::bf16);
  EXPECT_EQ(value(of("bf16: true\nmain-grads-dtype: bf16").precision), "bf16-mixed");
  EXPECT_EQ(value(of("bf16: true\nfp8-format: hybrid").precision), "fp8-mixed");
  EXPECT_EQ(value(of("use-megatron-fsdp: true").stage), 3);
  EXPECT_EQ(value(of("use-megatron-fsdp: true\ndata-parallel-sharding-strategy: optim_grads").stage), 2);
  // Without the flag the strategy means nothing.
  EXPECT_EQ(value(of("data-parallel-sharding-strategy: optim_grads").stage), 0);
  EXPECT_FALSE(of("data-parallel-sharding-strategy: optim_grads").megatron->data_parallel_sharding_strategy);
  EXPECT_EQ(value(of("use-torch-fsdp2: true").engine), Engine::fsdp2);
  EXPECT_EQ(value(of("optimizer: muon\nuse-distributed-optimizer: true").stage), 0);
  EXPECT_FALSE(of("sequence-parallel: true").sequence_parallel);
}

TEST(MegatronArgs, WhatIsWrongNamesFileAndKey) {
  const std::tuple<std::string, const char*, const char*> cases[] = {
      {"hidden_size: 8\n", "hidden_size", "is the argument that 'hidden-size' is too"},
      {"num-query-groups: 3\ngroup-query-attention: true\n", "num-query-groups", "a divisor of the 4 attention heads"},
      {"normalization: BatchNorm\n", "normalization", "LayerNorm, RMSNorm"},
      {"bf16: true\nfp16: true\n", "fp16", "excludes bf16"},
      {"bf16: 3\n", "bf16", "expected true or false"},
      {"num-experts: 2\nmoe-router-topk: 3\n", "moe-router-topk", "at most the 2 experts"},
      {"num-experts: 2\nmoe-pad-expert-input-to-capacity: true\n", "moe-pad-expert-input-to-capacity",
       "moe-expert-capacity-factor beside it"},
      {"num-experts: 2\nmoe-expert-capacity-factor: -2\n", "moe-expert-capacity-factor", "a positive number"},
      {"num-experts: 2\nmoe-shared-expert-intermediate-size: 64\n", "moe-shared-expert-intermediate-size",
       "disable-bias-linear"},
      {"pipeline-model-parallel-size: 2\nnum-layers-per-virtual-pipeline-stage: 3\n",
       "num-layers-per-virtual-pipeline-stage", "a divisor of the layers"},
      {"hybrid-layer-pattern: MXM\n", "hybrid-layer-pattern", "found 'X'"},
      {"hybrid-layer-pattern: M/M/MM\n", "hybrid-layer-pattern", "the same layers"},
      {"hybrid-layer-pattern: ME\n", "num-experts", "the pattern has layers with experts"},
      {"optimizer: soap\n", "optimizer", "soap are not known"},
      {"optimizer-cpu-offload: true\n", "optimizer-cpu-offload", "needs use-precision-aware-optimizer"},
      {"ffn-hidden-size: -1\n", "ffn-hidden-size", "a positive integer"},
      {"optimizer-offload-fraction: 2\n", "optimizer-offload-fraction", "0 to 1"},
      {"optimizer-offload-fraction: half\n", "optimizer-offload-fraction", "0 to 1"},
  };
  for (const auto& [more, key, problem] : cases) {
    SCOPED_TRACE(more);
    expect_config_error([&, &more = more] { read(more); }, "args.yaml", key, problem);
  }
  expect_config_error([] { read_megatron_args("hidden-size: 64\n", "a"); }, "a", "num-layers", "missing");
  expect_config_error([] { read_megatron_args("[1]", "a"); }, "a", "", "a map of Megatron's arguments");
  expect_config_error([] { read_megatron_args(R"({"args": [1]})", "a"); }, "a", "args", "a map of arguments");
  expect_config_error([] { read_megatron_args(R"({"args": {"num-layers": 2}, "world_size": 0})", "a"); }, "a",
                      "world_size", "expected a positive integer, found 0");
  expect_config_error([] { read_megatron_args(R"({"args": {"num-layers": 2}})", "a"); }, "a", "args.hidden-size",
                      "missing");
  expect_config_error(
      [] {
        read_megatron_args(
            "num-layers: 65536\nhidden-size: 2147483647\nnum-attention-heads: 1\n"
            "max-position-embeddings: 2147483647\nvocab-size: 2147483647\n",
            "a");
      },
      "a", "decoder.layers.0.mlp.linear_fc1.weight", "more elements than 64 bits can count");
}

// Random models and set-ups that the arguments can say.
MegatronSizes any_sizes() {
  MegatronSizes s;
  s.kind = *rc::gen::element(MegatronKind::gpt, MegatronKind::bert, MegatronKind::t5, MegatronKind::hybrid);
  s.vocabulary = *rc::gen::inRange<std::uint64_t>(1, 5000);
  s.layers = *rc::gen::inRange<std::uint64_t>(1, 9);
  s.heads = *rc::gen::element<std::uint64_t>(4, 8);
  s.hidden = s.heads * *rc::gen::element<std::uint64_t>(8, 16);
  s.ffn = *rc::gen::inRange<std::uint64_t>(1, 300);
  s.query_groups = *rc::gen::elementOf(std::vector<std::uint64_t>{s.heads, 2, 4});
  s.kv_channels = *rc::gen::element<std::uint64_t>(8, 16, 24);
  s.max_positions = *rc::gen::inRange<std::uint64_t>(1, 300);
  s.transformer_engine = *rc::gen::arbitrary<bool>();
  s.gated = *rc::gen::arbitrary<bool>();
  s.activation = s.gated ? *rc::gen::element("silu", "quick_gelu") : *rc::gen::element("gelu", "relu2");
  s.rms_norm = *rc::gen::arbitrary<bool>();
  s.linear_bias = *rc::gen::arbitrary<bool>();
  s.qkv_bias = *rc::gen::arbitrary<bool>();
  s.qk_norm = *rc::gen::arbitrary<bool>();
  s.output_gate = *rc::gen::arbitrary<bool>();
  s.untied = *rc::gen::arbitrary<bool>();
  s.positions = *rc::gen::element(MegatronPositions::learned, MegatronPositions::rotary, MegatronPositions::none);
  if (s.kind == MegatronKind::bert) s.binary_head = *rc::gen::arbitrary<bool>();
  if (s.kind == MegatronKind::t5) s.encoder_layers = *rc::gen::inRange<std::uint64_t>(1, 9);
  if (s.kind == MegatronKind::gpt && *rc::gen::arbitrary<bool>()) {
    s.latent = MegatronSizes::Latent{.query_rank = *rc::gen::element<std::uint64_t>(0, 24)};
  }
  if (s.kind == MegatronKind::gpt || s.kind == MegatronKind::hybrid) {
    MegatronSizes::Experts e;
    e.experts = *rc::gen::element<std::uint64_t>(2, 4);
    e.ffn = *rc::gen::inRange<std::uint64_t>(1, 100);
    e.shared_ffn = s.linear_bias ? 0 : *rc::gen::element<std::uint64_t>(0, 24);
    e.grouped = s.transformer_engine && (s.kind == MegatronKind::hybrid || *rc::gen::arbitrary<bool>());
    e.balancing_bias = *rc::gen::arbitrary<bool>();
    if (s.kind == MegatronKind::gpt) {
      e.layers = *rc::gen::container<std::vector<bool>>(s.layers, rc::gen::arbitrary<bool>());
      if (std::find(e.layers.begin(), e.layers.end(), false) == e.layers.end()) e.layers.clear();
    }
    s.experts = e;
    s.prediction_layers = *rc::gen::element<std::uint64_t>(0, 1, 2);
  }
  if (s.kind == MegatronKind::hybrid) {
    s.pattern = *rc::gen::container<std::string>(s.layers, rc::gen::element('M', '*', '-', 'E'));
    if (s.prediction_layers > 0) s.prediction_pattern = "*E";
    s.mamba.head = 8;
    s.mamba.heads = *rc::gen::element<std::uint64_t>(0, 4);
  }
  return s;
}

RC_GTEST_PROP(MegatronArgsProperty, WhatIsWrittenReadsBack, ()) {
  const MegatronSizes sizes = any_sizes();
  shardplan::Setup setup;
  Parallelism& p = setup.parallel;
  p.tensor = *rc::gen::element<std::uint64_t>(1, 2);
  p.context = *rc::gen::element<std::uint64_t>(1, 2);
  if (sizes.kind != MegatronKind::t5) p.pipeline = *rc::gen::element<std::uint64_t>(1, 2);
  if (sizes.experts) {
    p.expert = *rc::gen::element<std::uint64_t>(1, 2);
    p.expert_tensor = *rc::gen::element<std::uint64_t>(1, 2);
  }
  p.sequence_parallel = p.tensor > 1 && *rc::gen::arbitrary<bool>();
  p.embedding_is_a_layer = *rc::gen::arbitrary<bool>();
  p.virtual_stages = *rc::gen::element<std::uint64_t>(1, 2);
  p.vocabulary_multiple = *rc::gen::element<std::uint64_t>(1, 64, 128);
  setup.world_size = 4 * p.context;
  setup.accumulation = *rc::gen::inRange<std::uint64_t>(1, 9);
  setup.optimizer = *rc::gen::element(OptimizerKind::adamw, OptimizerKind::sgd_momentum);
  setup.recompute = *rc::gen::element(Recompute::none, Recompute::full);
  setup.policy = policy_named(*rc::gen::element("fp32", "bf16-mixed-fp32grad", "bf16-mixed", "fp16-mixed"));
  MegatronOptions options;
  options.main_grads_dtype = setup.policy.gradient;
  options.use_distributed_optimizer = *rc::gen::arbitrary<bool>();
  setup.stage = *options.use_distributed_optimizer ? 1 : 0;
  if (*options.use_distributed_optimizer && *rc::gen::arbitrary<bool>()) {
    options.use_megatron_fsdp = true;
    options.data_parallel_sharding_strategy =
        *rc::gen::element(MegatronSharding::optim, MegatronSharding::optim_grads, MegatronSharding::optim_grads_params);
    setup.stage = static_cast<int>(*options.data_parallel_sharding_strategy);
  }
  options.overlap_grad_reduce = *rc::gen::arbitrary<bool>();
  options.fsdp_double_buffer = *rc::gen::arbitrary<bool>();
  if (*rc::gen::arbitrary<bool>()) options.ddp_bucket_size = *rc::gen::inRange<std::uint64_t>(1, 1'000'000);
  options.use_precision_aware_optimizer = *rc::gen::arbitrary<bool>();
  if (options.use_precision_aware_optimizer) {
    options.exp_avg_dtype = *rc::gen::element(DType::f32, DType::bf16, DType::f8_e4m3);
    options.optimizer_cpu_offload = *rc::gen::arbitrary<bool>();
    if (options.optimizer_cpu_offload) options.optimizer_offload_fraction = *rc::gen::element(0.25, 1.0);
  }

  if (p.pipeline > 1 && sizes.kind == MegatronKind::gpt && *rc::gen::arbitrary<bool>()) {
    p.piece_layers.assign(p.pipeline * p.virtual_stages, 0);
    p.piece_layers.back() = sizes.layers;
  }
  const std::string text = megatron_args_text(sizes, setup, options, {}, 3, 17);
  const MegatronRun run = read_megatron_args(text, "args.yaml");
  RC_ASSERT(run.sizes == sizes);
  RC_ASSERT(run.config.megatron == options);
  const TrainingConfig& config = run.config;
  const auto count = [](const Saying<std::uint64_t>& said) { return said ? said->value : 1; };
  RC_ASSERT(count(config.world_size) == total_ranks(setup));
  RC_ASSERT(count(config.tensor) == p.tensor);
  RC_ASSERT(count(config.pipeline) == p.pipeline);
  RC_ASSERT(count(config.context) == p.context);
  RC_ASSERT(count(config.expert) == p.expert);
  RC_ASSERT(count(config.virtual_stages) == p.virtual_stages);
  RC_ASSERT(value(config.piece_layers).value_or(std::vector<std::uint64_t>()) == p.piece_layers);
  RC_ASSERT(value(config.expert_tensor) == p.expert_tensor);
  RC_ASSERT(config.sequence_parallel.has_value() == p.sequence_parallel);
  RC_ASSERT(config.embedding_is_a_layer.has_value() == p.embedding_is_a_layer);
  RC_ASSERT(count(config.vocabulary_multiple) == p.vocabulary_multiple);
  RC_ASSERT(config.stage->value == setup.stage);
  RC_ASSERT(config.precision->value == setup.policy.name);
  RC_ASSERT(config.optimizer->value == setup.optimizer);
  RC_ASSERT(config.recompute.has_value() == (setup.recompute == Recompute::full));
  RC_ASSERT(count(config.sequence) == 17U);
  RC_ASSERT(resolve_batch(config, data_parallel(setup)) == (Batch{3, setup.accumulation}));
}

// Presets as Megatron builds them: of these families, the same count of parameters (which megatron_sizes_of checks).
TEST(MegatronSizesOf, PresetsThatMegatronCanBuild) {
  for (const char* name : {"llama-2-7b", "llama-3-70b", "mixtral-8x7b", "gpt2", "qwen2.5-7b", "qwen3-30b-a3b"}) {
    const Model model = require_preset_model(name);
    const MegatronSizes sizes = megatron_sizes_of(model);
    EXPECT_EQ(parameter_elements(megatron_model(name, sizes).catalog), parameter_elements(model.catalog)) << name;
  }
  EXPECT_EQ(megatron_sizes_of(require_preset_model("qwen2.5-7b")).qkv_bias, true);
  EXPECT_THROW(megatron_sizes_of(require_preset_model("mamba-130m")), ConfigError);
  EXPECT_THROW(megatron_sizes_of(require_preset_model("t5-small")), ConfigError);
}

// Every run of Megatron-LM's own tests that was measured reads, with the ranks that it was measured on.
TEST(MegatronArgsGolden, EveryMeasuredRunReads) {
  const char* folder = std::getenv("SHARDPLAN_GOLDEN");
  ASSERT_NE(folder, nullptr);
  const std::string path = std::string(folder) + "/measured/megatron.json";
  const JsonDocument document(read_text(path), path);
  std::size_t rows = 0;
  for (const JsonView row : document.root().elements()) {
    const std::string id(row["id"].as_string());
    SCOPED_TRACE(id);
    try {
      const MegatronRun run = read_megatron_args(row);
      const auto count = [](const Saying<std::uint64_t>& said) { return said ? said->value : 1; };
      EXPECT_EQ(count(run.config.world_size), row["world_size"].as_count());
      EXPECT_EQ(count(run.config.context), row["cp"].as_count());
      for (const std::string& note : run.config.notes) {
        EXPECT_EQ(note.find("is not known here"), std::string::npos) << note;
      }
      shardplan::Setup setup;
      setup.parallel.tensor = count(run.config.tensor);
      setup.parallel.pipeline = count(run.config.pipeline);
      setup.parallel.virtual_stages = count(run.config.virtual_stages);
      setup.parallel.expert = count(run.config.expert);
      if (run.config.expert_tensor) setup.parallel.expert_tensor = run.config.expert_tensor->value;
      setup.parallel.embedding_is_a_layer = run.config.embedding_is_a_layer.has_value();
      setup.parallel.loss_is_a_layer = run.config.loss_is_a_layer.has_value();
      setup.parallel.vocabulary_multiple = count(run.config.vocabulary_multiple);
      EXPECT_FALSE(kinds_of_ranks(run.model, setup).empty());
      ++rows;
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
  EXPECT_EQ(rows, 74U);
}

}  // namespace
}  // namespace shardplan
