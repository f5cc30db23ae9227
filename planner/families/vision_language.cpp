// Language models that see: an encoder of images, a projector, and a language model behind it.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "planner/families/vision.h"
#include "planner/families/vision_language.h"

namespace shardplan {
namespace {

using Part = ModelBuilder::Part;

const Family& family(std::string_view model_type) {
  const Family* found = find_family(model_type);
  SHARDPLAN_CHECK(found != nullptr, "a family that is part of another one");
  return *found;
}

// SigLIP in front of Gemma 3; the projector pools neighbouring patches. The class calls the parts by other names than
// its files do (modeling_gemma3.py).
void gemma3(ModelConfig& config, ModelBuilder& model) {
  const bool generates = config.head().suffix == "ForConditionalGeneration";
  const ModelConfig vision = config.nested("vision_config", family("siglip_vision_model"), "VisionModel");
  const ModelConfig text = config.nested("text_config", family("gemma3_text"), generates ? "ForCausalLM" : "TextModel");
  const std::uint64_t seen = width_of(vision, 768);
  const std::uint64_t width = width_of(text, 2304);

  model.nested("vision_tower", vision, Part::tower);
  Modules projection = linear("multi_modal_projector", seen, width, false);
  projection[0].tensors[0] = {.name = "mm_input_projection_weight", .shape = {seen, width}};
  model.add(join({projection, rms_norm("multi_modal_projector.mm_soft_emb_norm", seen),
                  activation("multi_modal_projector.avg_pool", "mean", config.size("mm_tokens_per_image", 256))}));
  model.nested(generates ? "language_model" : "language_model.model", text, Part::main);
  if (config.head().suffix == "ForSequenceClassification")
    model.add_outside(linear("score", width, config.labels(), false));
}

// Which of the layers a list of their numbers names.
std::vector<bool> named_layers(const std::vector<std::uint64_t>& numbers, std::uint64_t layers) {
  std::vector<bool> named(layers);
  for (const std::uint64_t number : numbers) {
    if (number < layers) named[number] = true;
  }
  return named;
}

Modules llama4_experts(const Architecture& a, const Routing& routing, const std::string& function) {
  const std::uint64_t intermediate = routing.experts * a.intermediate;
  return join(
      {routed(below("experts", join({fused_experts("gate_up_proj", routing, a.hidden, 2 * a.intermediate,
                                                   {routing.experts, a.hidden, 2 * a.intermediate}),
                                     activation("act_fn", function, intermediate), multiply("gate", intermediate),
                                     fused_experts("down_proj", routing, a.intermediate, a.hidden,
                                                   {routing.experts, a.intermediate, a.hidden})})),
              {.experts = routing.experts, .chosen = routing.chosen, .fused = true}),
       router("router", a.hidden, routing.experts, false),
       gated_mlp("shared_expert", a.hidden, a.intermediate, function, false)});
}

// A norm without weights.
Modules plain_rms_norm(const std::string& name, std::uint64_t width) {
  Modules norm = rms_norm(name, width);
  norm[0].tensors.clear();
  return norm;
}

struct Llama4Layers {
  std::vector<bool> rotary;
  std::vector<bool> sparse;
};

Llama4Layers read_llama4_layers(ModelConfig& config, std::uint64_t layers) {
  if (layers > ModelConfig::kMostListed)
    config.fail("num_hidden_layers", fmt::format("expected at most {}, found {}", ModelConfig::kMostListed, layers));
  const std::uint64_t interval = config.size("no_rope_layer_interval", 4);
  const std::uint64_t step = config.size("interleave_moe_layer_step", 1);
  Llama4Layers kinds{std::vector<bool>(layers), std::vector<bool>(layers)};
  for (std::uint64_t i = 0; i < layers; ++i) {
    kinds.rotary[i] = (i + 1) % interval != 0;
    kinds.sparse[i] = (i + 1) % step == 0;
  }
  if (const auto listed = config.counts("no_rope_layers"); listed && !listed->empty()) {
    if (listed->size() < layers)
      config.fail("no_rope_layers",
                  fmt::format("expected {} numbers, one for each layer, found {}", layers, listed->size()));
    for (std::uint64_t i = 0; i < layers; ++i) kinds.rotary[i] = (*listed)[i] != 0;
  }
  if (const auto listed = config.counts("moe_layers")) kinds.sparse = named_layers(*listed, layers);
  return kinds;
}

// Experts in every interleave_moe_layer_step-th layer, fused, with one that every token passes; no positions in every
// fourth layer (modeling_llama4.py).
void llama4_text(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_decoder(config, {.vocabulary = 202048,
                                                       .hidden = 5120,
                                                       .intermediate = 8192,
                                                       .layers = 48,
                                                       .heads = 40,
                                                       .kv_heads = 8,
                                                       .head_size = 128,
                                                       .max_positions = 131072});
  const Llama4Layers layers = read_llama4_layers(config, a.layers);
  const std::uint64_t dense = config.size("intermediate_size_mlp", 16384);
  const Routing routing = read_routing(config, "num_experts_per_tok", 1, config.size("num_local_experts", 16));
  const std::string function = config.text("hidden_act", "silu");
  const bool normed = config.flag("use_qk_norm", true);
  const bool tempered = config.flag("attn_temperature_tuning", true);
  const AttentionWindow chunks{.tokens = config.count("attention_chunk_size", 8192)};

  model.describe(a);
  model.add(embedding("embed_tokens", a.vocabulary, a.hidden));
  model.blocks(
      "layers", a.layers, [&](std::uint64_t i) { return std::pair(layers.rotary[i], layers.sparse[i]); },
      [&](std::pair<bool, bool> kind) {
        const auto [rotary, sparse] = kind;
        const Modules norms = rotary && normed ? join({plain_rms_norm("qk_norm.q", a.heads * a.head_size),
                                                       plain_rms_norm("qk_norm.k", a.kv_heads * a.head_size)})
                                               : Modules{};
        return join({windowed(split_attention(
                                  "self_attn", a,
                                  {.rotary = rotary, .norms = norms, .dropout = config.number("attention_dropout", 0)}),
                              rotary ? chunks : AttentionWindow{}),
                     rotary || !tempered ? Modules{} : multiply("self_attn.attn_scale", a.heads * a.head_size),
                     sparse ? below("feed_forward", llama4_experts(a, routing, function))
                            : gated_mlp("feed_forward", a.hidden, dense, function, false),
                     rms_norm("input_layernorm", a.hidden), rms_norm("post_attention_layernorm", a.hidden)});
      });
  model.add(rms_norm("norm", a.hidden));
  model.head("embed_tokens", false);
}

// What pixel_shuffle makes of a patch's features: those of 1 / ratio^2 neighbours.
std::uint64_t shuffled_width(const ModelConfig& config, std::uint64_t width) {
  const double ratio = config.factor("pixel_shuffle_ratio", 0.5);
  constexpr double least = 1.0 / 64;
  if (!(ratio >= least && ratio <= 1))
    config.fail("pixel_shuffle_ratio", fmt::format("expected a number from 1/64 to 1, found {}", ratio));
  return static_cast<std::uint64_t>(static_cast<double>(width) / (ratio * ratio));
}

// A ViT with rotary attention; an adapter makes one token of several neighbours.
void llama4_vision(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_image_encoder(config, {.hidden = 768, .intermediate = 5632, .layers = 34, .heads = 16});
  const ImageSizes image = read_image(config, {.channels = 3, .image = 448, .patch = 14});
  const std::uint64_t adapter_input = config.size("projector_input_dim", 4096);
  const std::uint64_t adapter_output = config.size("projector_output_dim", 4096);
  a.max_positions = image.patches() + 1;
  model.describe(a);
  model.add(join({parameter("class_embedding", {a.hidden}),
                  parameter("positional_embedding_vlm", {a.max_positions, a.hidden}),
                  linear("patch_embedding.linear", numbers_in_square(config, "patch_size", image.patch, image.channels),
                         a.hidden, false),
                  layer_norm("layernorm_pre", a.hidden), layer_norm("layernorm_post", a.hidden)}));
  model.blocks(
      "model.layers", a.layers,
      join({split_attention("self_attn", a,
                            {.bias = true, .output_bias = true, .dropout = config.number("attention_dropout", 0)}),
            plain_mlp("mlp", "fc1", "fc2", a.hidden, a.intermediate, "gelu", true),
            layer_norm("input_layernorm", a.hidden), layer_norm("post_attention_layernorm", a.hidden)}));
  model.add(below("vision_adapter",
                  join({activation("pixel_shuffle", "pixel_shuffle", shuffled_width(config, a.hidden)),
                        below("mlp", join({linear("fc1", a.intermediate, adapter_input, false),
                                           activation("activation_fn", "gelu", adapter_input),
                                           dropout("dropout", config.number("projector_dropout", 0)),
                                           linear("fc2", adapter_output, adapter_output, false),
                                           activation("output_activation_fn", "gelu", adapter_output)}))})));
}

constexpr Head kTowerHeads[] = {{"VisionModel", "", "", HeadOutput::none, false}};
constexpr Family kLlama4Vision{"llama4_vision_model", "Llama4", kTowerHeads, {}, llama4_vision};

void llama4(ModelConfig& config, ModelBuilder& model) {
  ModelConfig vision = config.nested("vision_config", kLlama4Vision, "VisionModel");
  const ModelConfig text = config.nested("text_config", family("llama4_text"), "ForCausalLM");
  feature_strategy(vision);  // which takes all of them either way
  model.nested("vision_model", vision, Part::tower);
  model.add(
      linear("multi_modal_projector.linear_1", vision.size("vision_output_dim", 7680), width_of(text, 5120), false));
  model.nested("language_model", text, Part::main);
}

// The sizes of Chameleon's VQ encoder, which makes tokens of images.
struct VqSizes {
  std::vector<std::uint64_t> widths;  // of the levels, after a first one that is the first convolution's
  std::uint64_t blocks = 0;           // in each level
  std::vector<bool> attends;          // by level
  bool attends_in_the_middle = false;
  double dropout = 0;
};

constexpr std::uint64_t kNormGroups = 32;

VqSizes read_vq(ModelConfig& config) {
  constexpr std::uint64_t most_listed = 4096;  // levels, and blocks in a level
  const std::uint64_t base = config.size("base_channels", 128);
  const auto multipliers = config.counts("channel_multiplier").value_or(std::vector<std::uint64_t>{1, 1, 2, 2, 4});
  const auto attending = config.counts("attn_resolutions").value_or(std::vector<std::uint64_t>{});
  VqSizes sizes{.widths = {base}, .blocks = config.size("num_res_blocks", 2), .attends = {}};
  sizes.attends_in_the_middle = !config.present("attn_type") || config.says("attn_type", "vanilla");
  sizes.dropout = config.number("dropout", 0);
  if (multipliers.empty() || multipliers.size() * sizes.blocks > most_listed)
    config.fail(multipliers.empty() ? "channel_multiplier" : "num_res_blocks",
                fmt::format("expected 1 to {} blocks in all levels, found {} levels of {}", most_listed,
                            multipliers.size(), sizes.blocks));
  std::uint64_t resolution = config.size("resolution", 512);
  for (const std::uint64_t multiplier : multipliers) {
    const std::uint64_t width = base * multiplier;
    if (multiplier == 0 || width > ModelConfig::kLargestSize)
      config.fail("channel_multiplier",
                  fmt::format("expected factors that make a size of {}, found {}", base, multiplier));
    if (width % kNormGroups != 0)
      config.fail("base_channels", fmt::format("expected levels of a multiple of {} channels, found {} x {}",
                                               kNormGroups, base, multiplier));
    sizes.widths.push_back(width);
    sizes.attends.push_back(sizes.attends_in_the_middle &&
                            std::find(attending.begin(), attending.end(), resolution) != attending.end());
    resolution /= 2;
  }
  if (base % kNormGroups != 0)
    config.fail("base_channels", fmt::format("expected a multiple of {}, found {}", kNormGroups, base));
  return sizes;
}

Modules vq_block(const std::string& name, std::uint64_t input, std::uint64_t output, double dropped) {
  return below(name, join({group_norm("norm1", input), activation("act1", "silu", input),
                           convolution("conv1", input, output, {3, 3}, true), group_norm("norm2", output),
                           activation("act2", "silu", output), dropout("dropout", dropped),
                           convolution("conv2", output, output, {3, 3}, true),
                           input == output ? Modules{} : convolution("nin_shortcut", input, output, {1, 1}, true)}));
}

Modules vq_attention(const std::string& name, std::uint64_t width) {
  const auto projection = [&](const char* which) { return convolution(which, width, width, {1, 1}, true); };
  return below(name, join({group_norm("norm", width), projection("q"), projection("k"), projection("v"),
                           attention("attention", {1, 1, width, false}), projection("proj_out")}));
}

Modules vq_level(const VqSizes& sizes, std::size_t level) {
  const std::uint64_t width = sizes.widths[level + 1];
  Modules modules;
  for (std::uint64_t i = 0; i < sizes.blocks; ++i) {
    const Modules block =
        vq_block(fmt::format("block.{}", i), i == 0 ? sizes.widths[level] : width, width, sizes.dropout);
    modules.insert(modules.end(), block.begin(), block.end());
  }
  const bool last = level + 1 == sizes.attends.size();
  return join({std::move(modules),
               sizes.attends[level] ? repeated("attn", sizes.blocks, vq_attention("", width)) : Modules{},
               last ? Modules{} : convolution("downsample.conv", width, width, {3, 3}, true)});
}

void chameleon_vq(ModelConfig& config, ModelBuilder& model) {
  const VqSizes sizes = read_vq(config);
  const std::uint64_t latent = config.size("latent_channels", 256);
  const std::uint64_t code = config.size("embed_dim", 256);
  const std::uint64_t last = sizes.widths.back();
  model.add(convolution("encoder.conv_in", config.size("in_channels", 3), sizes.widths.front(), {3, 3}, true));
  model.blocks(
      "encoder.down", sizes.attends.size(), [](std::uint64_t level) { return level; },
      [&](std::uint64_t level) { return vq_level(sizes, level); });
  model.add(below(
      "encoder",
      join({vq_block("mid.block_1", last, last, sizes.dropout),
            sizes.attends_in_the_middle ? vq_attention("mid.attn_1", last) : Modules{},
            vq_block("mid.block_2", last, last, sizes.dropout), group_norm("norm_out", last),
            activation("act_out", "silu", last),
            convolution("conv_out", last, config.flag("double_latent", false) ? 2 * latent : latent, {3, 3}, true)})));
  model.add(join({embedding("quantize.embedding", config.size("num_embeddings", 8192), code),
                  convolution("quant_conv", latent, code, {1, 1}, true),
                  convolution("post_quant_conv", code, latent, {1, 1}, true)}));
}

constexpr Head kVqHeads[] = {{"", "", "", HeadOutput::none, false}};
constexpr Family kChameleonVq{"chameleon_vqgan", "ChameleonVQVAE", kVqHeads, {}, chameleon_vq};

// One LayerNorm for each head's queries or keys.
Modules chameleon_norm(const std::string& name, std::uint64_t heads, std::uint64_t head_size) {
  Modules norm = layer_norm(name, heads * head_size);
  for (Tensor& tensor : norm[0].tensors) tensor.shape = {heads, head_size};
  return norm;
}

// How many words of the vocabulary stand for the codes of images, by their names. A map that has been cut short names none of them:
// then it is one for each code.
std::uint64_t image_words(const ModelConfig& config, std::uint64_t codes) {
  std::uint64_t words = 0;
  for (const std::string_view word : config.names("vocabulary_map")) {
    if (word.starts_with("IMGIMG")) ++words;
  }
  return words > 0 ? words : codes;
}

// One vocabulary for text and images: what makes tokens of images is never trained (modeling_chameleon.py).
void chameleon(ModelConfig& config, ModelBuilder& model) {
  const ModelConfig vq = config.nested("vq_config", kChameleonVq, "");
  Architecture a = read_decoder(
      config,
      {.vocabulary = 65536, .hidden = 4096, .intermediate = 11008, .layers = 32, .heads = 32, .max_positions = 4096});
  a.kv_heads = config.size("num_key_value_heads", 32);
  config.require_divisor("num_key_value_heads", a.kv_heads, "num_attention_heads", a.heads);
  a.image_side = vq.optional_size("resolution").value_or(512);
  const bool bias = config.flag("attention_bias", false);
  const std::uint64_t words = image_words(config, vq.optional_size("num_embeddings").value_or(8192));
  model.describe(a);
  model.add(embedding("embed_tokens", a.vocabulary, a.hidden));
  model.blocks("layers", a.layers,
               join({split_attention("self_attn", a,
                                     {.bias = bias,
                                      .output_bias = bias,
                                      .norms = join({chameleon_norm("q_norm", a.heads, a.head_size),
                                                     chameleon_norm("k_norm", a.kv_heads, a.head_size)}),
                                      .dropout = config.number("attention_dropout", 0)}),
                     gated_mlp("mlp", a.hidden, a.intermediate, config.text("hidden_act", "silu"),
                               config.flag("mlp_bias", false)),
                     rms_norm("input_layernorm", a.hidden), rms_norm("post_attention_layernorm", a.hidden),
                     config.flag("swin_norm", false) ? residual("swin") : Modules{}}));
  model.add(rms_norm("norm", a.hidden));
  model.nested("vqmodel", vq, Part::frozen_tower);
  model.head("embed_tokens", false);
  // The logits of images' words are set to the least number.
  if (config.head().suffix == "ForConditionalGeneration") model.add_outside(activation("image_tokens", "fill", words));
}

// A ViT with rotary attention besides its learned positions, for images of any size.
void moonvit(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_image_encoder(config, {.hidden = 1152, .intermediate = 4304, .layers = 27, .heads = 16});
  const std::uint64_t patch = config.size("patch_size", 14);
  const std::uint64_t height = config.size("init_pos_emb_height", 64);
  const std::uint64_t width = config.size("init_pos_emb_width", 64);
  constexpr std::uint64_t colours = 3;
  a.max_positions = height * width;
  model.describe(a);
  model.add(below("patch_embed", join({convolution("proj", colours, a.hidden, {patch, patch}, true),
                                       parameter("pos_emb.weight", {height, width, a.hidden})})));
  model.blocks("encoder.blocks", a.layers,
               join({layer_norm("norm0", a.hidden), layer_norm("norm1", a.hidden),
                     plain_mlp("mlp", "fc0", "fc1", a.hidden, a.intermediate, "gelu_pytorch_tanh", true),
                     linear("wqkv", a.hidden, 3 * a.hidden, true), attention("attention", attention_sizes(a, true)),
                     linear("wo", a.hidden, a.hidden, true)}));
  model.add(layer_norm("encoder.final_layernorm", a.hidden));
}

constexpr Family kMoonVit{"moonvit", "MoonVit", kTowerHeads, {}, moonvit};

// MoonViT in front of DeepSeek-V3; the projector makes one token of merge_kernel_size neighbours
// (moonshotai/Kimi-VL-A3B-Instruct, modeling_kimi_vl.py).
void kimi_vl(ModelConfig& config, ModelBuilder& model) {
  const ModelConfig vision = config.nested("vision_config", kMoonVit, "VisionModel");
  const ModelConfig text = config.nested("text_config", family("deepseek_v3"), "ForCausalLM");
  const std::uint64_t seen = width_of(vision, 1152);
  const auto kernel = vision.counts("merge_kernel_size").value_or(std::vector<std::uint64_t>{2, 2});
  if (kernel.size() != 2 || kernel[0] == 0 || kernel[1] == 0)
    vision.fail("merge_kernel_size", "expected two sizes, of the patches merged");
  if (kernel[0] * kernel[1] > ModelConfig::kLargestSize / seen)
    vision.fail("merge_kernel_size", fmt::format("{} x {} patches of {} are too many", kernel[0], kernel[1], seen));
  const std::uint64_t merged = kernel[0] * kernel[1] * seen;

  model.nested("vision_tower", vision, Part::tower);
  model.add(below("multi_modal_projector",
                  join({layer_norm("pre_norm", seen), linear("linear_1", merged, merged, true),
                        activation("act", "gelu", merged), linear("linear_2", merged, width_of(text, 7168), true)})));
  model.nested("language_model", text, Part::main);
}

constexpr Head kGemma3Heads[] = {
    {"ForConditionalGeneration", "", "", HeadOutput::custom, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "", "score", HeadOutput::custom, false},
};

constexpr Head kLlama4TextHeads[] = {
    {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false},
    {"TextModel", "", "", HeadOutput::none, false},
};

constexpr Head kWholeHeads[] = {{"ForConditionalGeneration", "", "", HeadOutput::custom, false}};

constexpr Head kChameleonHeads[] = {
    {"ForConditionalGeneration", "model", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
};

}  // namespace

std::span<const Family> vision_language_families() {
  static const Family families[] = {
      {"gemma3", "Gemma3", kGemma3Heads, {}, gemma3},
      {"llama4", "Llama4", kWholeHeads, {}, llama4},
      {"llama4_text", "Llama4", kLlama4TextHeads, {}, llama4_text},
      {"llava", "Llava", kWholeHeads, {}, llava},
      {"qwen2_vl", "Qwen2VL", kWholeHeads, {}, qwen2_vl},
      {"qwen2_5_vl", "Qwen2_5_VL", kWholeHeads, {}, qwen2_5_vl},
      {"chameleon", "Chameleon", kChameleonHeads, {}, chameleon},
      {"kimi_vl", "KimiVL", kWholeHeads, {}, kimi_vl},
  };
  return families;
}

}  // namespace shardplan
