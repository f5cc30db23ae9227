// How many tokens pass each module: by hand, from each model's published sizes.
#include "planner/activations/module_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "planner/cost/compute.h"
#include "planner/formats/read_model.h"

namespace shardplan {
namespace {

ClientSetup reads(std::uint64_t tokens, Profile profile = Profile::hf_sdpa) {
  ClientSetup client;
  client.profile = profile;
  client.sequence = tokens;
  return client;
}

class Rows {
 public:
  explicit Rows(const char* model, const ClientSetup& client) : model_(find_model(model)) {
    rows_ = rows_of_modules(model_, Setup{}, client);
  }

  // Of the first unit that has a module of this name.
  ModuleRows of(std::string_view stack, std::string_view module) const {
    for (std::size_t run = 0; run < rows_.size(); ++run) {
      if (model_.modules[run].name.find(stack) == std::string::npos) continue;
      const Modules& modules = model_.modules[run].modules;
      const auto found =
          std::find_if(modules.begin(), modules.end(), [&](const Module& m) { return m.name.ends_with(module); });
      if (found != modules.end()) return rows_[run][static_cast<std::size_t>(found - modules.begin())];
    }
    ADD_FAILURE() << "no " << module << " in " << stack;
    return {};
  }
  ModuleRows attention(std::string_view stack, std::size_t which = 0) const {
    for (std::size_t run = 0; run < rows_.size(); ++run) {
      if (model_.modules[run].name.find(stack) == std::string::npos) continue;
      const Modules& modules = model_.modules[run].modules;
      std::size_t seen = 0;
      for (std::size_t i = 0; i < modules.size(); ++i) {
        if (modules[i].attention && seen++ == which) return rows_[run][i];
      }
    }
    ADD_FAILURE() << "no attention in " << stack;
    return {};
  }
  using Expected = std::initializer_list<std::pair<const char*, std::uint64_t>>;
  void expect(std::string_view stack, Expected rows) const {
    for (const auto& [module, count] : rows) EXPECT_EQ(of(stack, module).rows, count) << stack << " " << module;
  }
  const RowsOfModules& all() const { return rows_; }
  const Model& model() const { return model_; }

 private:
  Model model_;
  RowsOfModules rows_;
};

// So it is timed as without rows, to the last bit.
TEST(ModuleRows, ADecodersAreItsText) {
  for (const char* name : {"llama-2-7b", "gpt2", "mixtral-8x7b"}) {
    const Rows rows(name, reads(1024));
    for (const std::vector<ModuleRows>& run : rows.all()) {
      for (const ModuleRows& module : run) EXPECT_EQ(module.rows, 1024U) << name;
    }
    Cluster cluster;
    cluster.gpu.bandwidth_bytes_per_second = 1'000'000'000'000;
    cluster.gpu.bf16_flops = 100'000'000'000'000;
    Work work{.tokens = 2048, .sequence = 1024, .samples = 2};
    const PassSeconds by_text = sum(unit_seconds(rows.model(), work, cluster));
    work.rows = &rows.all();
    EXPECT_EQ(sum(unit_seconds(rows.model(), work, cluster)), by_text) << name;
  }
}

// Scores that are tensors are of all pairs; a kernel that is causal leaves half of them out.
TEST(ModuleRows, EagerAttentionComputesAllPairs) {
  EXPECT_EQ(Rows("llama-2-7b", reads(512)).attention("layers"), (ModuleRows{512, 512, true}));
  EXPECT_EQ(Rows("llama-2-7b", reads(512, Profile::hf_eager)).attention("layers"), (ModuleRows{512, 512, false}));
  EXPECT_EQ(Rows("roberta-base", reads(512)).attention("layer"), (ModuleRows{512, 512, false}));
}

// 224 pixels, patches of 16, and a token of the model's own.
TEST(ModuleRows, AnImageIsItsPatches) {
  const Rows rows("vit-base-patch16-224", reads(0));
  rows.expect("layer", {{"intermediate.dense", 197}});
  rows.expect("", {{"patch_embeddings.projection", 196}, {"classifier", 1}});
  EXPECT_EQ(rows.attention("layer"), (ModuleRows{197, 197, false}));
}

// 30 seconds are 3,000 frames, 1,500 behind the second convolution; the decoder reads them with its text.
TEST(ModuleRows, AnEncoderAndADecoderHaveTheirOwn) {
  const Rows rows("whisper-small", reads(448));
  rows.expect("encoder.layers", {{"fc1", 1500}});
  rows.expect("decoder.layers", {{"fc1", 448}, {"encoder_attn.k_proj", 1500}, {"encoder_attn.q_proj", 448}});
  EXPECT_EQ(rows.attention("encoder.layers"), (ModuleRows{1500, 1500, false}));
  EXPECT_EQ(rows.attention("decoder.layers", 0), (ModuleRows{448, 448, true}));
  EXPECT_EQ(rows.attention("decoder.layers", 1), (ModuleRows{448, 1500, false}));
}

// 512 pixels are 64 latent ones, 32 patches of a side; text has weights of its own, attention joins both.
TEST(ModuleRows, TwoStreamsOfOneBlock) {
  ClientSetup client = reads(333);
  client.image_height = client.image_width = 512;
  const Rows rows("sd3-medium", client);
  EXPECT_EQ(rows.attention("transformer_blocks"), (ModuleRows{1357, 1357, false}));
  rows.expect("transformer_blocks", {{"attn.to_q", 1024},
                                     {"norm1.norm", 1024},
                                     {"norm1.modulate", 1024},
                                     {"gate", 1024},
                                     {"norm2", 1024},
                                     {"modulate2", 1024},
                                     {"ff.net.2", 1024},
                                     {"gate_ff", 1024}});
  rows.expect("transformer_blocks", {{"attn.add_q_proj", 333},
                                     {"norm1_context.norm", 333},
                                     {"gate_context", 333},
                                     {"norm2_context", 333},
                                     {"modulate2_context", 333},
                                     {"ff_context.net.2", 333},
                                     {"gate_ff_context", 333}});
  rows.expect("transformer_blocks", {{"norm1.linear", 1}});
  rows.expect("", {{"norm_out.norm", 1024}});

  ClientSetup large = reads(512);
  large.image_height = large.image_width = 1024;
  const Rows flux("flux2-klein-4b", large);
  flux.expect("transformer_blocks", {{"norm2", 4096}, {"norm2_context", 512}});
  flux.expect("single_transformer_blocks", {{"attn.to_out", 4608}});
}

// 256 latent patches; what is linear in the condition is so once for each sample.
TEST(ModuleRows, AnImageAndItsCondition) {
  for (const Profile profile : {Profile::hf_sdpa, Profile::hf_eager}) {
    const Rows rows("dit-xl-2", reads(0, profile));
    EXPECT_EQ(rows.attention("blocks"), (ModuleRows{256, 256, false}));
    rows.expect("blocks", {{"norm1", 256},
                           {"modulate1", 256},
                           {"attn.qkv", 256},
                           {"attn.proj", 256},
                           {"gate1", 256},
                           {"norm2", 256},
                           {"modulate2", 256},
                           {"mlp.fc1", 256},
                           {"mlp.fc2", 256},
                           {"gate2", 256},
                           {"adaLN_modulation.0", 1},
                           {"adaLN_modulation.1", 1}});
    rows.expect("", {{"x_embedder.proj", 256},
                     {"t_embedder.mlp.0", 1},
                     {"y_embedder.embedding_table", 1},
                     {"final_layer.linear", 256},
                     {"final_layer.adaLN_modulation.1", 1}});
  }
}

// Five levels of 512 to 32 pixels of a side, of two images; without any, what makes words of them does not run.
TEST(ModuleRows, ImagesThatAreMadeWords) {
  ClientSetup client = reads(4096);
  client.images = 2;
  const Rows rows("chameleon-7b", client);
  rows.expect("model.layers", {{"self_attn.q_proj", 4096}, {"self_attn.q_norm", 4096}, {"mlp.down_proj", 4096}});
  EXPECT_EQ(rows.attention("model.layers"), (ModuleRows{4096, 4096, true}));
  rows.expect("vqmodel.encoder.down",
              {{"block.0.conv1", 2 * 512 * 512}, {"block.1.act2", 2 * 512 * 512}, {"downsample.conv", 2 * 256 * 256}});
  rows.expect("vqmodel", {{"conv_in", 2 * 512 * 512}, {"mid.attn_1.q", 2 * 1024}});
  EXPECT_EQ(rows.attention("vqmodel.head"), (ModuleRows{2 * 1024, 1024, false}));
  client.images = 0;
  const Rows words("chameleon-7b", client);
  std::size_t idle = 0;
  for (std::size_t run = 0; run < words.all().size(); ++run) {
    if (words.model().modules[run].name.find("vqmodel") == std::string::npos) continue;
    EXPECT_TRUE(words.all()[run].empty()) << words.model().modules[run].name;
    ++idle;
  }
  EXPECT_GT(idle, 0U);
}

// Of the language model, whose experts have the rows of their router; and of the tower, whose image has 64 x 64 patches.
TEST(ModuleRows, ATowerBesideALanguageModel) {
  const Rows rows("kimi-vl-a3b", reads(2048));
  rows.expect("language_model.model.layers", {{"self_attn.o_proj", 2048}, {"experts.7.down_proj", 2048}});
  rows.expect("vision_tower", {{"mlp.fc0", 4096}});
  EXPECT_EQ(rows.attention("vision_tower"), (ModuleRows{4096, 4096, false}));
}

// 336 pixels are 24 x 24 patches, and a token of the tower's own: LLaVA's projector reads the patches, Llama 4's adapter makes one token
// of four.
TEST(ModuleRows, ProjectorsReadWhatTowersLeave) {
  const Rows llava("llava-1.5-7b", reads(1024));
  llava.expect("vision_tower", {{"mlp.fc1", 577}});
  llava.expect("", {{"multi_modal_projector.linear_1", 576}, {"multi_modal_projector.linear_2", 576}});
  llava.expect("language_model.model.layers", {{"mlp.up_proj", 1024}});
  EXPECT_EQ(llava.attention("vision_tower"), (ModuleRows{577, 577, false}));

  ClientSetup client = reads(2048);
  client.images = 5;
  const Rows llama4("llama-4-scout-17b-16e", client);
  llama4.expect("vision_model.model.layers", {{"mlp.fc1", 5 * 577}});
  EXPECT_EQ(llama4.attention("vision_model.model.layers"), (ModuleRows{5 * 577, 577, false}));
  llama4.expect("", {{"vision_model.patch_embedding.linear", 5 * 576},
                     {"vision_adapter.mlp.fc1", 5 * 144},
                     {"vision_adapter.pixel_shuffle", 5 * 144},
                     {"multi_modal_projector.linear_1", 5 * 144}});
  llama4.expect("language_model.model.layers", {{"self_attn.o_proj", 2048}});
}

// 308 x 448 pixels are 22 x 32 patches. In windows of 8 x 8: two rows of windows and one of six patches, a kernel for each; some layers
// see the whole image.
TEST(ModuleRows, WindowsAreCallsOfTheirOwn) {
  ClientSetup client = reads(1024);
  client.images = 3;
  client.image_height = 308;
  client.image_width = 448;
  const Rows rows("qwen2.5-vl-7b", client);
  constexpr std::uint64_t patches = std::uint64_t{22} * 32;
  rows.expect("visual.blocks", {{"attn.qkv", 3 * patches}, {"mlp.down_proj", 3 * patches}});
  rows.expect("", {{"visual.merger.mlp.0", 3 * patches / 4}});
  constexpr std::uint64_t pairs = 8 * 64 * 64 + 4 * 48 * 48;
  EXPECT_EQ(rows.attention("visual.blocks"), (ModuleRows{3 * patches, (pairs + patches - 1) / patches, false}));
  std::size_t whole = 0;
  for (std::size_t run = 0; run < rows.all().size(); ++run) {
    const Modules& modules = rows.model().modules[run].modules;
    for (std::size_t i = 0; i < modules.size(); ++i) {
      if (modules[i].attention && rows.all()[run][i] == ModuleRows{3 * patches, patches, false}) ++whole;
    }
  }
  EXPECT_EQ(whole, 4U);
}

// Without images a tower is not entered.
TEST(ModuleRows, TextsAlone) {
  ClientSetup client = reads(256);
  client.images = 0;
  const Rows rows("gemma-3-4b", client);
  for (std::size_t run = 0; run < rows.all().size(); ++run) {
    const bool seen = rows.model().modules[run].name.find("vision_tower") != std::string::npos;
    EXPECT_EQ(rows.all()[run].empty(), seen) << rows.model().modules[run].name;
  }
  rows.expect("language_model.model.layers", {{"mlp.up_proj", 256}});
}

// Without a weight, or with a copy of one in fp32, or called chunk by chunk.
TEST(ModuleRows, OfWhatIsNoPlainProduct) {
  const Rows router("deepseek-v2-lite", reads(512));
  router.expect("layers", {{"mlp.gate", 512}, {"experts.3.up_proj", 512}});
  ClientSetup chunks = reads(4096, Profile::torchtune);
  chunks.loss = LossKind::chunked;
  chunks.loss_chunks = 8;
  const Rows chunked("llama-2-7b", chunks);
  chunked.expect("", {{"lm_head", 4096}});
}

// In training an autoencoder decodes nothing.
TEST(ModuleRows, WhatNoForwardEntersHasNone) {
  const Rows rows("sd3-medium-pipeline", reads(333));
  std::size_t decoders = 0;
  std::size_t encoders = 0;
  for (std::size_t run = 0; run < rows.all().size(); ++run) {
    const std::string& name = rows.model().modules[run].name;
    if (name.find("vae.decoder") != std::string::npos) {
      EXPECT_TRUE(rows.all()[run].empty()) << name;
      ++decoders;
    } else if (name.find("encoder") != std::string::npos) {
      EXPECT_FALSE(rows.all()[run].empty()) << name;
      ++encoders;
    }
  }
  EXPECT_GT(decoders, 0U);
  EXPECT_GT(encoders, 0U);
}

TEST(ModuleRows, WhatNoProfileKnowsHasNone) {
  EXPECT_TRUE(Rows("llama-2-7b", reads(512, Profile::megatron)).all().empty());
  EXPECT_TRUE(Rows("llama-2-7b", reads(0)).all().empty());
}

}  // namespace
}  // namespace shardplan
