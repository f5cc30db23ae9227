// Qwen2-VL and Qwen2.5-VL (modeling_qwen2_vl.py, modeling_qwen2_5_vl.py): a ViT for images of any size, whose merger makes one token of
// neighbouring patches, and Qwen2 behind it.
#include <fmt/format.h>

#include <algorithm>

#include "planner/families/vision.h"
#include "planner/families/vision_language.h"

namespace shardplan {
namespace {

using Part = ModelBuilder::Part;

// What both towers have in common.
struct Tower {
  Architecture sizes;
  std::uint64_t patch = 0;
  std::uint64_t merged = 0;  // patches on a side that become one token
};

Tower read_tower(ModelConfig& config, std::string_view width, std::uint64_t class_width) {
  Tower tower;
  Architecture& a = tower.sizes;
  a.hidden = config.size(width, class_width);
  a.layers = config.size("depth", 32);
  a.heads = config.size("num_heads", 16);
  a.kv_heads = a.heads;
  config.require_divisor("num_heads", a.heads, width, a.hidden);
  a.head_size = a.hidden / a.heads;
  tower.patch = config.size("patch_size", 14);
  tower.merged = config.size("spatial_merge_size", 2);
  if (numbers_in_square(config, "spatial_merge_size", tower.merged, 1) > ModelConfig::kLargestSize / a.hidden)
    config.fail("spatial_merge_size", fmt::format("{0} x {0} patches of {1} are too many", tower.merged, a.hidden));
  return tower;
}

Modules patch_embedding(ModelConfig& config, const Tower& tower) {
  return convolution("patch_embed.proj", config.size("in_channels", 3), tower.sizes.hidden,
                     {config.size("temporal_patch_size", 2), tower.patch, tower.patch}, false);
}

Modules tower_attention(const Architecture& a, std::uint64_t window) {
  return windowed(
      below("attn", join({linear("qkv", a.hidden, 3 * a.hidden, true), attention("attention", attention_sizes(a, true)),
                          linear("proj", a.hidden, a.hidden, true)})),
      {.tokens = window});
}

Modules merger(const Tower& tower, Modules norm, std::uint64_t output) {
  const std::uint64_t width = tower.sizes.hidden * tower.merged * tower.merged;
  return below("merger", join({std::move(norm), linear("mlp.0", width, width, true), activation("mlp.1", "gelu", width),
                               linear("mlp.2", width, output, true)}));
}

void qwen2_tower(ModelConfig& config, ModelBuilder& model) {
  const Tower tower = read_tower(config, "embed_dim", 1280);
  const Architecture& a = tower.sizes;
  const auto inner = static_cast<std::uint64_t>(static_cast<double>(a.hidden) * config.factor("mlp_ratio", 4));
  if (inner == 0 || inner > ModelConfig::kLargestSize)
    config.fail("mlp_ratio", fmt::format("expected a factor that makes a size of {}", a.hidden));
  model.describe(a);
  model.add(patch_embedding(config, tower));
  model.blocks("blocks", a.layers,
               join({layer_norm("norm1", a.hidden), layer_norm("norm2", a.hidden), tower_attention(a, 0),
                     plain_mlp("mlp", "fc1", "fc2", a.hidden, inner, config.text("hidden_act", "quick_gelu"), true)}));
  model.add(merger(tower, layer_norm("ln_q", a.hidden), config.size("hidden_size", 3584)));
}

// Attention within windows, but in some layers; a window is of whole tokens behind the merger.
void qwen25_tower(ModelConfig& config, ModelBuilder& model) {
  const Tower tower = read_tower(config, "hidden_size", 3584);
  const Architecture& a = tower.sizes;
  const std::uint64_t inner = config.size("intermediate_size", 3420);
  const std::uint64_t side = config.size("window_size", 112) / tower.merged / tower.patch;
  if (side == 0)
    config.fail("window_size", fmt::format("expected at least {} pixels, one token", tower.merged * tower.patch));
  const std::uint64_t window = numbers_in_square(config, "window_size", side * tower.merged, 1);
  const auto whole = config.counts("fullatt_block_indexes").value_or(std::vector<std::uint64_t>{7, 15, 23, 31});
  model.describe(a);
  model.add(patch_embedding(config, tower));
  model.blocks(
      "blocks", a.layers, [&](std::uint64_t i) { return std::find(whole.begin(), whole.end(), i) != whole.end(); },
      [&](bool sees_all) {
        return join({rms_norm("norm1", a.hidden), rms_norm("norm2", a.hidden),
                     tower_attention(a, sees_all ? 0 : window),
                     gated_mlp("mlp", a.hidden, inner, config.text("hidden_act", "silu"), true)});
      });
  model.add(merger(tower, rms_norm("ln_q", a.hidden), config.size("out_hidden_size", 3584)));
}

// Qwen2 with the class's own defaults, rotated by places in time, height and width.
void text_model(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_grouped_width(config, {.vocabulary = 152064,
                                                     .hidden = 8192,
                                                     .intermediate = 29568,
                                                     .layers = 80,
                                                     .heads = 64,
                                                     .kv_heads = 8,
                                                     .max_positions = 32768});
  const AttentionWindow window = read_qwen_windows(config, a.layers, 80);
  model.describe(a);
  model.add(embedding("embed_tokens", a.vocabulary, a.hidden));
  model.blocks(
      "layers", a.layers,
      join({windowed(split_attention("self_attn", a, {.bias = true, .dropout = config.number("attention_dropout", 0)}),
                     window),
            gated_mlp("mlp", a.hidden, a.intermediate, config.text("hidden_act", "silu"), false), norms_before(a)}));
  model.add(rms_norm("norm", a.hidden));
  model.head("embed_tokens", false);
}

constexpr Head kTowerHeads[] = {{"VisionModel", "", "", HeadOutput::none, false}};
constexpr Head kTextHeads[] = {{"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false}};
constexpr Family kQwen2Tower{"qwen2_vl_vision", "Qwen2VL", kTowerHeads, {}, qwen2_tower};
constexpr Family kQwen25Tower{"qwen2_5_vl_vision", "Qwen2_5_VL", kTowerHeads, {}, qwen25_tower};
constexpr Family kText{"qwen2_vl_text", "Qwen2VL", kTextHeads, {}, text_model};

// Older files have what is the language model's beside vision_config (configuration_qwen2_5_vl.py).
// `width`: the tower's key of what its merger makes of a token, which takes the place of a word.
void both(ModelConfig& config, ModelBuilder& model, const Family& tower, std::string_view width) {
  const ModelConfig vision = config.nested("vision_config", tower, "VisionModel");
  const bool older = !config.has("text_config");
  const ModelConfig text = older ? config.as(kText, "ForCausalLM") : config.nested("text_config", kText, "ForCausalLM");
  const std::uint64_t merged = vision.optional_size(width).value_or(3584);
  const std::uint64_t words = width_of(text, 8192);
  if (merged != words) {
    vision.fail(width, fmt::format("expected {}, as {}hidden_size of the language model, {}", words,
                                   older ? "" : "text_config.", vision.found(width, merged)));
  }
  model.nested("visual", vision, Part::tower);
  model.nested("", text, Part::main);
}

}  // namespace

void qwen2_vl(ModelConfig& config, ModelBuilder& model) {
  both(config, model, kQwen2Tower, "hidden_size");
}

void qwen2_5_vl(ModelConfig& config, ModelBuilder& model) {
  both(config, model, kQwen25Tower, "out_hidden_size");
}

}  // namespace shardplan
