// Profiles litgpt, torchtune, torchtitan and hf-liger, by closed forms: each term is what one operation of the program's own
// forward saves. Adapters and quantised weights beside them; selective checkpoints on a tape.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "planner/activations/profiles.h"
#include "planner/activations/torch_ops.h"
#include "planner/activations/torch_programs/torchtitan_model.h"
#include "planner/families/litgpt.h"
#include "planner/formats/hf_config.h"
#include "planner/lora.h"
#include "planner/parallel.h"

namespace shardplan {
namespace {

struct Sizes {
  std::uint64_t h = 64, f = 160, heads = 4, groups = 2, d = 16, words = 96, b = 2, s = 40;
  std::uint64_t tokens() const { return b * s; }
};

Model llama(const Sizes& n) {
  return model_from_hf_config(
      fmt::format(
          R"({{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": {}, "hidden_size": {},
                       "intermediate_size": {}, "num_hidden_layers": 6, "num_attention_heads": {},
                       "num_key_value_heads": {}, "tie_word_embeddings": false}})",
          n.words, n.h, n.f, n.heads, n.groups),
      "config.json");
}

ClientSetup client_of(const Sizes& n, Profile profile) {
  ClientSetup client;
  client.profile = profile;
  client.micro_batch = n.b;
  client.sequence = n.s;
  return client;
}

Setup bf16() {
  Setup setup;
  setup.policy = policy_named("bf16");
  return setup;
}

Activity activity(const Model& model, const ClientSetup& client, const Setup& setup = bf16()) {
  ActivityResult result = activity_of(model, model.catalog, setup, client, {.rounding = 1});
  EXPECT_TRUE(result.activity) << result.unknown_because;
  return result.activity.value_or(Activity{});
}

// Of the second block, which is like the others.
std::uint64_t of_a_block(const Activity& activity) {
  return activity.saved.at(1).bytes.count();
}

// The kernel's own: queries, keys and values of all heads, output, log-sum-exp, two random states.
std::uint64_t attention(const Sizes& n, std::uint64_t key_heads, std::uint64_t value_heads) {
  return 2 * n.tokens() * n.d * (2 * n.heads + key_heads + value_heads) + 4 * n.b * n.heads * n.s + 24;
}

TEST(Torchtune, ABlockKeepsRepeatedHeads) {
  const Sizes n;
  const std::uint64_t norm = n.tokens() * (4 * n.h + 4 + 2 * n.h + 2 * n.h);  // fp32 input, 1/rms, normalised, output
  const std::uint64_t mlp = 4 * 2 * n.tokens() * n.f;
  EXPECT_EQ(of_a_block(activity(llama(n), client_of(n, Profile::torchtune))),
            2 * norm + attention(n, n.heads, n.heads) + mlp);
}

TEST(Torchtune, ARecomputedBlockKeepsItsInput) {
  const Sizes n;
  ClientSetup client = client_of(n, Profile::torchtune);
  client.recompute = RecomputeKind::full;
  EXPECT_EQ(of_a_block(activity(llama(n), client)), 2 * n.tokens() * n.h);
}

TEST(Torchtune, ChunkedLossesHoldOneLogSoftmaxAndNoLogits) {
  const Sizes n;
  ClientSetup client = client_of(n, Profile::torchtune);
  const auto loss_bytes = [&] {
    const HeldBytes held = after_forward(activity(llama(n), client));
    return held[static_cast<std::size_t>(autograd::Purpose::loss)];
  };
  const std::int64_t eager = loss_bytes();
  client.loss = LossKind::chunked;
  client.loss_chunks = 4;
  // Logits less; the parts of the features, which of more than one text are copies, more.
  const auto logits =
      static_cast<std::int64_t>(4 * n.tokens() * n.words) - static_cast<std::int64_t>(2 * n.tokens() * n.h);
  EXPECT_NEAR(static_cast<double>(eager - loss_bytes()), static_cast<double>(logits), 512);
}

// Of seven products the first, third, fifth and seventh: queries, values, gate and down; and what attention puts out.
TEST(Torchtitan, SelectiveKeepsEverySecondProduct) {
  const Sizes n;
  ClientSetup client = client_of(n, Profile::torchtitan);
  client.recompute = RecomputeKind::selective;
  const std::uint64_t products = 2 * n.tokens() * (n.heads * n.d + n.groups * n.d + n.f + n.h);
  const std::uint64_t attended = 2 * n.tokens() * n.heads * n.d + 4 * n.b * n.heads * n.s + 24;
  EXPECT_EQ(of_a_block(activity(llama(n), client)), 2 * n.tokens() * n.h + products + attended);
}

// Nothing is computed twice that was kept: the backward of a block allocates less than with a full checkpoint.
TEST(Torchtitan, SelectiveTakesWhatItKept) {
  const Sizes n;
  ClientSetup client = client_of(n, Profile::torchtitan);
  const auto backward = [&](RecomputeKind kind) {
    client.recompute = kind;
    for (const ActivitySpan& span : activity(llama(n), client).spans) {
      if (span.pass == autograd::Pass::backward && span.unit == "model.layers.5") return sum(span.peak);
    }
    return std::int64_t{0};
  };
  const auto kept = static_cast<std::int64_t>(2 * n.tokens() * (n.heads * n.d + n.groups * n.d + n.f));
  EXPECT_LE(backward(RecomputeKind::selective), backward(RecomputeKind::full) - kept);
}

// docs/memory_model.md: of a rank of t, with 16 bits; what is gathered for products is whole.
TEST(Torchtitan, ABlockOfATensorRank) {
  const Sizes n{.h = 128, .f = 160, .heads = 8, .groups = 4};
  for (const std::uint64_t t : {2U, 4U}) {
    shardplan::Setup setup = bf16();
    setup.parallel.tensor = t;
    const Model model = llama(n);
    const Catalog held = kinds_of_ranks(model, setup).front().catalog;
    const ActivityResult result = activity_of(model, held, setup, client_of(n, Profile::torchtitan), {.rounding = 1});
    ASSERT_TRUE(result.activity) << result.unknown_because;
    const std::uint64_t norm = n.tokens() / t * (4 * n.h + 4 + 2 * n.h);  // fp32 input, 1/rms, normalised
    const std::uint64_t gathered = 2 * n.tokens() * n.h;
    const std::uint64_t heads = n.heads / t;
    const std::uint64_t kept_heads = n.groups / t == 1 ? 1 : heads;  // one key head is seen as often as it is used
    const std::uint64_t attention = 2 * n.tokens() * n.d * (2 * heads + 2 * kept_heads) + 4 * n.b * heads * n.s + 24;
    const std::uint64_t mlp = 4 * 2 * n.tokens() * n.f / t;
    EXPECT_EQ(of_a_block(*result.activity), 2 * (norm + gathered) + attention + mlp);
  }
}

// What a rank keeps beside, by the first words of its name.
std::uint64_t kept_beside(const Setup& setup, const ClientSetup& client, std::size_t stage, std::string_view words) {
  const Model model = llama(Sizes{});
  Bytes bytes;
  for (const ClientTerm& term :
       torchtitan_client_terms(model, kinds_of_ranks(model, setup).at(stage).catalog, setup, client)) {
    if (term.name.starts_with(words)) bytes += term.bytes;
  }
  return bytes.count();
}

TEST(Torchtitan, StagesKeepLogitsAndTheWholeEmbeddingsGradient) {
  const Sizes n;
  shardplan::Setup setup = bf16();
  setup.parallel.pipeline = 2;
  setup.parallel.tensor = 2;
  setup.accumulation = 4;
  ClientSetup client = client_of(n, Profile::torchtitan);
  EXPECT_EQ(kept_beside(setup, client, 0, "logits"), 0U);
  EXPECT_EQ(kept_beside(setup, client, 1, "logits"), 2 * 4 * n.tokens() * n.words / 2);
  EXPECT_EQ(kept_beside(setup, client, 0, "gradient of other"), 0U);  // an engine that does not let them wait
  client.waiting_gradients = DType::bf16;
  EXPECT_EQ(kept_beside(setup, client, 0, "gradient of other"), 2 * n.words / 2 * n.h);
  client.waiting_gradients = DType::f32;
  EXPECT_EQ(kept_beside(setup, client, 0, "gradient of other"), 4 * n.words / 2 * n.h);
  EXPECT_EQ(kept_beside(setup, client, 1, "gradient of other"), 0U);
  client.loss_parallel = false;
  EXPECT_EQ(kept_beside(setup, client, 1, "logits"), 2 * 4 * n.tokens() * n.words);
  setup.parallel.pipeline = 1;
  EXPECT_EQ(kept_beside(setup, client, 0, "logits") + kept_beside(setup, client, 0, "gradient of other"), 0U);
}

TEST(LitGpt, ABlockWithAdaptersOnQueriesAndValues) {
  const Sizes n;
  Model model = litgpt_model(llama(n));
  constexpr std::uint64_t kRank = 4;
  add_lora(model.catalog, {.rank = kRank, .targets = {"attn.query", "attn.value"}});
  ClientSetup client = client_of(n, Profile::litgpt);
  client.adapter_dropout = 0.05;
  const std::uint64_t t = n.tokens();
  const std::uint64_t norm = t * (4 * n.h + 4) + 4 * n.h;        // fp32 input, 1/rms, the weight in fp32
  const std::uint64_t dropped = t * n.h * (1 + 2);               // mask and output
  const std::uint64_t low = 2 * t * 2 * kRank;                   // what A gives
  const std::uint64_t features = n.d * (n.heads + n.groups);     // that the adapters put out
  const std::uint64_t copied = 2 * t * features + 8 * features;  // by index_copy, and its index
  const std::uint64_t gated = 3 * 2 * t * n.f;                   // fc_1, its silu, fc_2
  EXPECT_EQ(of_a_block(activity(model, client)),
            2 * norm + dropped + low + copied + attention(n, n.heads, n.heads) + gated);
}

TEST(LitGpt, TheHeadIsNotTied) {
  const Model model = litgpt_model(llama(Sizes{}));
  EXPECT_TRUE(has_tensor(model.catalog, "lm_head.weight"));
  EXPECT_EQ(parameter_elements(model.catalog), parameter_elements(llama(Sizes{}).catalog));
}

// gate, up and product; input and 1/rms of each norm, whose output is a product's input; rotation keeps nothing.
TEST(Liger, ABlockKeepsNoCopies) {
  const Sizes n;
  ClientSetup client = client_of(n, Profile::hf_liger);
  client.use_cache = false;
  client.mask = MaskKind::ones;
  const std::uint64_t norm = n.tokens() * (2 * n.h + 4 + 2 * n.h);
  EXPECT_EQ(of_a_block(activity(llama(n), client)),
            2 * norm + attention(n, n.groups, n.groups) + 3 * 2 * n.tokens() * n.f);
}

TEST(Liger, TheLossKeepsGradientsInsteadOfLogits) {
  const Sizes n;
  ClientSetup client = client_of(n, Profile::hf_liger);
  client.mask = MaskKind::ones;
  const Activity all = activity(llama(n), client);
  const SavedByUnit& head = all.saved.back();
  std::uint64_t of_loss = 0;
  for (const SavedTensor& tensor : head.tensors) {
    if (tensor.operation.starts_with("gradient of the")) of_loss += tensor.bytes.count();
  }
  EXPECT_EQ(of_loss, 2 * n.tokens() * n.h + 2 * n.words * n.h);
}

// A product with a 4-bit weight keeps nothing; one with an 8-bit weight its input.
TEST(Quantised, WhatProductsKeep) {
  const Sizes n;
  const auto kept = [&](std::optional<Quantization> quantization) {
    Model model = llama(n);
    for (const char* glob : {"model.layers.*.self_attn.*", "model.layers.*.mlp.*"}) freeze(model.catalog, glob);
    if (quantization) quantize(model.catalog, *quantization);
    return of_a_block(activity(model, client_of(n, Profile::hf_sdpa)));
  };
  const std::uint64_t plain = kept(std::nullopt);
  EXPECT_EQ(kept(Quantization::nf4), plain);
  EXPECT_EQ(kept(Quantization::nf4_single), plain);
  // Both norms' outputs and the MLP's product; attention's output is kept already.
  EXPECT_EQ(kept(Quantization::int8) - plain, n.tokens() * (2 * 2 * n.h + 2 * n.f));
}

TEST(Quantised, TheWeightIsWrittenOutForTheProduct) {
  const Sizes n;
  const auto peak = [&](bool quantised) {
    Model model = llama(n);
    for (const char* glob : {"model.layers.*.self_attn.*", "model.layers.*.mlp.*"}) freeze(model.catalog, glob);
    if (quantised) quantize(model.catalog, Quantization::nf4);
    for (const ActivitySpan& span : activity(model, client_of(n, Profile::hf_sdpa)).spans) {
      if (span.unit == "model.layers.0" && span.pass == autograd::Pass::forward) {
        return span.peak[static_cast<std::size_t>(autograd::Purpose::workspace)];
      }
    }
    return std::int64_t{-1};
  };
  EXPECT_EQ(peak(false), 0);
  EXPECT_EQ(peak(false), 0);
  // The largest: in 16 bit, beside its scales, one in fp32 for 64 elements.
  EXPECT_EQ(peak(true), 2 * n.h * n.f + 4 * n.h * n.f / 64);
}

}  // namespace
}  // namespace shardplan
