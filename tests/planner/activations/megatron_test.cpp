// The tape of Megatron's layers against formulas that others published, and against the tables of docs/memory_model.md.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "planner/activations/megatron/megatron_model.h"
#include "planner/activations/pipeline.h"
#include "planner/activations/profiles.h"
#include "planner/families/megatron.h"
#include "planner/formats/hf_config.h"
#include "planner/parallel.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kHidden = 1024;
constexpr std::uint64_t kHeads = 16;
constexpr std::uint64_t kSequence = 512;
constexpr std::uint64_t kBatch = 4;
constexpr std::uint64_t kVocabulary = 51200;
constexpr std::uint64_t kSbh = kSequence * kBatch * kHidden;
constexpr std::uint64_t kScores = kHeads * kSequence * kSequence * kBatch;
// Mean and inverse deviation of two LayerNorms, fp32: the formulas leave them out.
constexpr std::uint64_t kStatistics = 4 * 4 * kSequence * kBatch;
// A FlashAttention's or cuDNN's log-sum-exp and state of random numbers.
constexpr std::uint64_t kLogSumExp = 4 * kSequence * kBatch * kHeads;
constexpr std::uint64_t kRandomState = 16;

struct Rig {
  MegatronSizes sizes;
  shardplan::Setup setup;
  ClientSetup client;

  Rig() {
    sizes.vocabulary = kVocabulary;
    sizes.layers = 6;
    sizes.hidden = kHidden;
    sizes.ffn = 4 * kHidden;
    sizes.heads = sizes.query_groups = kHeads;
    sizes.kv_channels = kHidden / kHeads;
    sizes.max_positions = kSequence;
    setup.policy = policy_named("bf16-mixed-fp32grad");
    client.profile = Profile::megatron;
    client.micro_batch = kBatch;
    client.sequence = kSequence;
    client.megatron.attention = MegatronAttention::unfused;
  }

  Rig& tensor(std::uint64_t ranks, bool sequence_parallel) {
    setup.parallel.tensor = ranks;
    setup.parallel.sequence_parallel = sequence_parallel;
    return *this;
  }
  // Llama's layers: RMSNorm, gated MLP, rotary positions, no biases, no dropout.
  Rig& llama() {
    sizes.rms_norm = sizes.gated = sizes.untied = true;
    sizes.linear_bias = false;
    sizes.positions = MegatronPositions::rotary;
    client.megatron.hidden_dropout = client.megatron.attention_dropout = 0;
    return *this;
  }
  Activity activity(bool folds = true) const {
    const Model model = megatron_model("m", sizes);
    const Catalog held = kinds_of_ranks(model, setup).front().catalog;
    const ActivityResult result =
        activity_of(model, held, setup, client, {.rounding = 1, .folds = folds, .keeps_gradients = false});
    EXPECT_TRUE(result.activity) << result.unknown_because;
    return result.activity.value_or(Activity());
  }
  std::uint64_t saved(const std::string& unit) const {
    for (const SavedByUnit& each : activity().saved) {
      if (each.unit == unit) return each.bytes.count();
    }
    ADD_FAILURE() << unit << " saves nothing";
    return 0;
  }
  std::uint64_t layer() const { return saved("decoder.layers.1"); }
};

// Korthikanti et al., arXiv 2205.05198, equation 1: 16-bit, dropout, MLP of 4h, scores as tensors.
TEST(Korthikanti, ALayerOfOneRank) {
  EXPECT_EQ(Rig().layer(), 34 * kSbh + 5 * kScores + kStatistics);
  Rig local;
  local.sizes.transformer_engine = local.client.megatron.transformer_engine = false;
  EXPECT_EQ(local.layer(), 34 * kSbh + 5 * kScores + kStatistics);
}

// The encoder is computed again after the decoder had its turn, with its own tokens.
TEST(MegatronActivations, T5ComputesItsEncoderAgainWithItsOwnTokens) {
  const auto encoder_peak = [](std::uint64_t decoder_sequence) {
    Rig t5;
    t5.sizes.kind = MegatronKind::t5;
    t5.sizes.encoder_layers = 4;
    t5.client.recompute = RecomputeKind::full;
    t5.client.megatron.decoder_sequence = decoder_sequence;
    const Activity activity = t5.activity();
    const auto span = std::find_if(activity.spans.begin(), activity.spans.end(), [](const ActivitySpan& each) {
      return each.unit == "encoder.layers.1" && each.pass == autograd::Pass::backward;
    });
    EXPECT_NE(span, activity.spans.end());
    return span == activity.spans.end() ? 0 : sum(span->peak);
  };
  EXPECT_GT(encoder_peak(kSequence), 0);
  EXPECT_EQ(encoder_peak(kSequence / 4), encoder_peak(kSequence));
}

// Equation 2.
TEST(Korthikanti, TensorParallelism) {
  for (const std::uint64_t t : {2U, 4U, 8U}) {
    EXPECT_EQ(Rig().tensor(t, false).layer(), 10 * kSbh + 24 * kSbh / t + 5 * kScores / t + kStatistics) << t;
  }
}

// Equation 4.
TEST(Korthikanti, SequenceParallelism) {
  for (const std::uint64_t t : {2U, 4U, 8U}) {
    EXPECT_EQ(Rig().tensor(t, true).layer(), (34 * kSbh + 5 * kScores + kStatistics) / t) << t;
  }
}

// Equation 6: attention's core is computed again, so the terms in a s^2 b are gone.
TEST(Korthikanti, SelectiveRecomputation) {
  Rig rig;
  rig.client.recompute = RecomputeKind::selective;
  EXPECT_EQ(rig.layer(), 34 * kSbh + kStatistics);
  EXPECT_EQ(rig.tensor(8, true).layer(), (34 * kSbh + kStatistics) / 8);
}

// Section 5: a layer that is computed again keeps its input.
TEST(Korthikanti, FullRecomputation) {
  Rig rig;
  rig.client.recompute = RecomputeKind::full;
  EXPECT_EQ(rig.layer(), 2 * kSbh);
  rig.client.megatron.recompute_num_layers = 3;  // units of three layers
  const Activity units = rig.activity();
  std::uint64_t inputs = 0;
  for (const SavedByUnit& unit : units.saved) {
    if (unit.unit.starts_with("decoder.layers")) inputs += unit.times * unit.bytes.count();
  }
  EXPECT_EQ(inputs, 2 * 2 * kSbh);
}

// Section 4.3: input and output embeddings, and the loss: the mask of dropout, the inputs of the last norm and of the output
// layer, the logits in fp32.
TEST(Korthikanti, EmbeddingAndHead) {
  for (const std::uint64_t t : {1U, 8U}) {
    const Rig rig = Rig().tensor(t, t > 1);
    const std::uint64_t tokens = kSequence * kBatch;
    EXPECT_EQ(rig.saved("embedding"), kSbh / t + 8 * tokens);  // and the masked ids
    EXPECT_EQ(rig.saved("head"), 4 * kSbh / t + 4 * tokens * kVocabulary / t + 2 * 4 * tokens / t + 9 * tokens);
  }
}

// Section 4.2.3: the first rank of an interleaved pipeline has L (1 + (p - 1) / (p m)) layers.
TEST(Korthikanti, InterleavedPipeline) {
  const Parallelism p{.pipeline = 4, .virtual_stages = 3};
  std::uint64_t chunks = 0;
  for (const std::uint64_t held : most_held(p, 0, 64)) chunks += held;
  EXPECT_EQ(chunks, p.pipeline * p.virtual_stages + p.pipeline - 1);
}

// 16 + 6 f / h bytes per token and feature with cuDNN's attention, as SimuMax and others count Llama's layers.
TEST(MegatronLayers, LlamaOnCudnn) {
  Rig rig = Rig().llama();
  rig.client.megatron.attention = MegatronAttention::fused;
  EXPECT_EQ(rig.layer(), 16 * kSbh + 6 * 4 * kSbh + kStatistics / 2 + kLogSumExp + kRandomState);
  // Grouped: keys and values of 4 heads.
  rig.sizes.query_groups = 4;
  EXPECT_EQ(rig.layer(), 12 * kSbh + 4 * kSbh / 4 + 6 * 4 * kSbh + kStatistics / 2 + kLogSumExp + kRandomState);
}

// The same layers from a file of Hugging Face's, whose modules have other names.
TEST(MegatronLayers, FromAnyFile) {
  Rig rig = Rig().llama();
  rig.sizes.query_groups = 4;
  const Model model = model_from_hf_config(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"],
      "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 16,
      "num_key_value_heads": 4, "vocab_size": 51200, "max_position_embeddings": 512})",
                                           "config.json");
  const ActivityResult from_file =
      activity_of(model, model.catalog, rig.setup, rig.client, {.rounding = 1, .keeps_gradients = false});
  ASSERT_TRUE(from_file.activity) << from_file.unknown_because;
  const Activity own = rig.activity();
  EXPECT_EQ(sum(peak_of(*from_file.activity).held), sum(peak_of(own).held));
  EXPECT_EQ(sum(after_forward(*from_file.activity)), sum(after_forward(own)));
}

// A copy of each head of queries and keys, its statistic, and what the norm makes of it (the rotation's copy aside).
TEST(MegatronLayers, NormsOnHeads) {
  Rig rig = Rig().llama();
  rig.client.megatron.attention = MegatronAttention::fused;
  const std::uint64_t without = rig.layer();
  rig.sizes.qk_norm = true;
  EXPECT_EQ(rig.layer(), without + 2 * 2 * kSbh + 2 * 4 * kSequence * kBatch * kHeads);
}

TEST(MegatronLayers, WhatIsNotKnownIsSaid) {
  Rig rig;
  rig.sizes.prediction_layers = 1;
  const Model model = megatron_model("m", rig.sizes);
  const ActivityResult result = activity_of(model, model.catalog, rig.setup, rig.client);
  EXPECT_FALSE(result.activity);
  EXPECT_NE(result.unknown_because.find("multi-token"), std::string::npos);
}

// FlashAttention 2 has the batch first: its output is there twice. With one sequence nothing has to move.
TEST(MegatronLayers, FlashAttentionKeepsItsOutputTwice) {
  Rig rig = Rig().llama();
  rig.client.megatron.attention = MegatronAttention::fused;
  const std::uint64_t fused = rig.layer();
  rig.client.megatron.attention = MegatronAttention::flash;
  EXPECT_EQ(rig.layer(), fused + 2 * kSbh);
  rig.client.micro_batch = 1;
  const std::uint64_t flash = rig.layer();
  rig.client.megatron.attention = MegatronAttention::fused;
  EXPECT_EQ(rig.layer(), flash);
}

// Without dropout there is no mask: 2 s b h of hidden dropout, and of attention only the softmax is left.
TEST(MegatronLayers, NoDropoutNoMasks) {
  Rig rig;
  rig.client.megatron.hidden_dropout = rig.client.megatron.attention_dropout = 0;
  EXPECT_EQ(rig.layer(), 32 * kSbh + 2 * kScores + kStatistics);
}

// silu and product are kernels of their own: the product of the gate's half is a tensor more.
TEST(MegatronLayers, UnfusedGate) {
  Rig rig = Rig().llama();
  const std::uint64_t fused = rig.layer();
  rig.client.megatron.bias_activation_fusion = false;
  EXPECT_EQ(rig.layer(), fused + 2 * 4 * kSbh);
}

// Not fused, each rotation keeps a cosine and a sine of the positions.
TEST(MegatronLayers, UnfusedRotation) {
  Rig rig = Rig().llama();
  const std::uint64_t fused = rig.layer();
  rig.client.megatron.rope_fusion = false;
  EXPECT_EQ(rig.layer(), fused + 2 * 2 * 2 * kSequence * (kHidden / kHeads));
}

// Each rank of a context-parallel group has its part of everything; Ulysses keeps attention's output on both sides.
TEST(MegatronLayers, ContextParallelism) {
  Rig rig = Rig().llama();
  rig.client.megatron.attention = MegatronAttention::fused;
  const std::uint64_t whole = rig.layer() - kRandomState;
  rig.setup.parallel.context = rig.setup.world_size = 4;
  EXPECT_EQ(rig.layer(), whole / 4 + kRandomState);
  rig.client.megatron.context_exchange = ContextExchange::all_gather;
  EXPECT_EQ(rig.layer(), whole / 4 + kRandomState);
  rig.client.megatron.context_exchange = ContextExchange::all_to_all;
  EXPECT_EQ(rig.layer(), whole / 4 + kRandomState + 2 * kSbh / 4);
  rig.client.megatron.attention = MegatronAttention::unfused;
  const Model model = megatron_model("m", rig.sizes);
  EXPECT_THROW(activity_of(model, model.catalog, rig.setup, rig.client), ConfigError);
}

// fp8: the inputs of the four products in one byte. Inputs of norms, of attention and of the activation stay.
TEST(MegatronLayers, Fp8KeepsInputsOfProductsInOneByte) {
  Rig rig = Rig().llama();
  rig.client.megatron.attention = MegatronAttention::fused;
  const std::uint64_t bf16 = rig.layer();
  rig.client.megatron.fp8 = Fp8Recipe::delayed;
  // Both norms' outputs and the second product's input halve; the projection's input is there for attention anyway, and once
  // more in a byte.
  EXPECT_EQ(rig.layer(), bf16 - kSbh - kSbh - 4 * kSbh + kSbh);
  rig.client.megatron.fp8 = Fp8Recipe::tensorwise;  // the projection takes what attention keeps
  EXPECT_EQ(rig.layer(), bf16 - kSbh - kSbh - 4 * kSbh);
  rig.client.megatron.fp8 = Fp8Recipe::mxfp8;  // a scale for 32 elements
  EXPECT_EQ(rig.layer(), bf16 - 6 * kSbh + 6 * kSbh / 32);
}

Rig experts() {
  Rig rig = Rig().llama();
  rig.client.megatron.attention = MegatronAttention::fused;
  rig.client.megatron.grouped_gemm = true;
  MegatronSizes::Experts e;
  e.experts = 8;
  e.chosen = 2;
  e.ffn = kHidden;
  e.grouped = true;
  rig.sizes.experts = e;
  return rig;
}

// Pairs of token and expert: x, the first product, what goes into the second.
TEST(MegatronLayers, Experts) {
  Rig rig = experts();
  const std::uint64_t tokens = kSequence * kBatch;
  const std::uint64_t pairs = 2 * tokens;
  const std::uint64_t attention = 16 * kSbh + kStatistics / 2 + kLogSumExp + kRandomState;
  const std::uint64_t routing = tokens * 8 * (2 + 4 + 2 + 1) + pairs * (8 + 2);
  const std::uint64_t computed = pairs * kHidden * (2 + 4 + 2);
  EXPECT_EQ(rig.layer(), attention + routing + computed);
  // Parallel over experts, a balanced rank computes as many pairs.
  rig.setup.world_size = 4;
  rig.setup.parallel.expert = 4;
  EXPECT_EQ(rig.layer(), attention + routing + computed);
  // The most loaded rank has what its experts compute of others' tokens; what it routes are its own.
  rig.client.expert_load.imbalance = 2;
  const std::uint64_t routed = tokens * 8 * (2 + 4 + 2 + 1);
  EXPECT_EQ(rig.layer(), attention + routed + 2 * (pairs * (8 + 2) + computed));
  rig.client.expert_load.capacity_factor = 1.5;  // and a map of what is not dropped
  EXPECT_EQ(rig.layer(), attention + routed + tokens * 8 + 3 * (pairs * (8 + 2) + computed) / 2);
  rig.client.expert_load = {};
  // The input of the second product is made again.
  rig.client.recompute = RecomputeKind::selective;
  rig.client.megatron.recompute_modules = {.core_attention = false, .moe_activation = true};
  EXPECT_EQ(rig.layer(), attention + routing + computed - pairs * kHidden * 2);
}

TEST(MegatronLayers, SharedExpertAndDeterministicSums) {
  Rig rig = experts();
  const std::uint64_t before = rig.layer();
  rig.sizes.experts->shared_ffn = kHidden;
  EXPECT_EQ(rig.layer(), before + 3 * 2 * kSbh);
  rig.sizes.experts->shared_ffn = 0;
  rig.client.megatron.deterministic_mode = true;  // index_add_ saves what it adds
  EXPECT_EQ(rig.layer(), before + 2 * 2 * kSbh);
}

// Running equal layers once for all of them gives what running each gives.
TEST(MegatronLayers, FoldedIsUnfolded) {
  for (const RecomputeKind recompute : {RecomputeKind::none, RecomputeKind::selective, RecomputeKind::full}) {
    Rig rig = experts();
    rig.client.recompute = recompute;
    const Activity folded = rig.activity(true);
    const Activity whole = rig.activity(false);
    EXPECT_EQ(sum(after_forward(folded)), sum(after_forward(whole)));
    EXPECT_EQ(sum(peak_of(folded).held), sum(peak_of(whole).held));
  }
}

// What a step allocates it frees: only the loss and the accumulated nothing remain.
TEST(MegatronLayers, NothingIsLeftBehind) {
  const Activity activity = experts().activity();
  std::int64_t left = 0;
  for (const ActivitySpan& span : activity.spans) left += static_cast<std::int64_t>(span.times) * sum(span.net);
  EXPECT_EQ(left, 0);
}

// Heads of the loss, per logit of a rank at the peak: 6 bytes unfused, 10 in compiled functions, 2 in place.
TEST(MegatronLayers, CrossEntropies) {
  const auto loss = [](MegatronCrossEntropy kind) {
    Rig rig = Rig().llama();
    rig.client.megatron.cross_entropy = kind;
    return static_cast<double>(peak_of(rig.activity()).held[1]) / static_cast<double>(kSequence * kBatch * kVocabulary);
  };
  EXPECT_NEAR(loss(MegatronCrossEntropy::unfused), 6, 0.01);
  EXPECT_NEAR(loss(MegatronCrossEntropy::native), 10, 0.01);
  EXPECT_NEAR(loss(MegatronCrossEntropy::te), 2, 0.05);
}

// A reference: forwards under no_grad, which keep nothing, hold less than a training forward, and use no buffers of a backward.
TEST(Megatron, AFrozenModelKeepsNothing) {
  Rig rig;
  rig.llama();
  Model model = megatron_model("m", rig.sizes);
  freeze(model.catalog, "*");
  const ActivityResult frozen = activity_of(model, model.catalog, rig.setup, rig.client, {.rounding = 1});
  ASSERT_TRUE(frozen.activity) << frozen.unknown_because;
  EXPECT_EQ(sum(after_forward(*frozen.activity)), 0);
  EXPECT_GT(sum(peak_of(*frozen.activity).held), 0);
  EXPECT_LT(sum(peak_of(*frozen.activity).held), sum(peak_of(rig.activity()).held));
  const auto has_stand_ins = [&](const Model& of) {
    const auto terms = megatron_client_terms(of, of.catalog, rig.setup, rig.client, {});
    return std::any_of(terms.begin(), terms.end(), [](const auto& term) { return term.name.starts_with("stand-ins"); });
  };
  EXPECT_TRUE(has_stand_ins(megatron_model("m", rig.sizes)));
  EXPECT_FALSE(has_stand_ins(model));
  // A part of it: what its products then keep is not written down.
  Model half = megatron_model("m", rig.sizes);
  freeze(half.catalog, half.catalog.runs.front().tensors.front().name);
  EXPECT_FALSE(activity_of(half, half.catalog, rig.setup, rig.client, {}).activity);
}

}  // namespace
}  // namespace shardplan
