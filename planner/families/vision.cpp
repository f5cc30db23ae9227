// Vision Transformers: encoders of images, most with a classifier behind.
#include "planner/families/vision.h"

#include <fmt/format.h>

namespace shardplan {

Architecture read_image_encoder(ModelConfig& config, const Architecture& defaults) {
  Architecture a;
  a.hidden = config.size("hidden_size", defaults.hidden);
  if (defaults.intermediate > 0) a.intermediate = config.size("intermediate_size", defaults.intermediate);
  a.layers = config.size("num_hidden_layers", defaults.layers);
  a.heads = config.size("num_attention_heads", defaults.heads);
  a.kv_heads = a.heads;
  config.require_divisor("num_attention_heads", a.heads, "hidden_size", a.hidden);
  a.head_size = a.hidden / a.heads;
  return a;
}

ImageSizes read_image(ModelConfig& config, const ImageSizes& defaults) {
  ImageSizes sizes;
  sizes.channels = config.size("num_channels", defaults.channels);
  sizes.image = config.size("image_size", defaults.image);
  sizes.patch = config.size("patch_size", defaults.patch);
  if (sizes.patch > sizes.image)
    config.fail("patch_size", fmt::format("expected at most image_size, {}, found {}", sizes.image, sizes.patch));
  return sizes;
}

std::uint64_t numbers_in_square(const ModelConfig& config, std::string_view attribute, std::uint64_t side,
                                std::uint64_t channels) {
  if (side * side > ModelConfig::kLargestSize / channels)
    config.fail(attribute, fmt::format("{0} x {0} pixels of {1} channels are too many", side, channels));
  return side * side * channels;
}

std::uint64_t width_of(const ModelConfig& part, std::uint64_t class_default) {
  return part.optional_size("hidden_size").value_or(class_default);
}

Modules patches_to_tokens(const std::string& name, const ImageSizes& image, std::uint64_t width, bool bias) {
  return convolution(name, image.channels, width, {image.patch, image.patch}, bias);
}

namespace {

bool is(const ModelConfig& config, std::string_view head) {
  return config.head().suffix == head;
}

// Rates of dropout: of the attention's probabilities, and of what the embedding and each part of a block give.
struct VisionDropouts {
  double attended = 0;
  double hidden = 0;
};

VisionDropouts read_vision_dropouts(const ModelConfig& config) {
  return {.attended = config.number("attention_probs_dropout_prob", 0),
          .hidden = config.number("hidden_dropout_prob", 0)};
}

// Queries, keys and values below attention.<inner>.
Modules vit_attention(const std::string& inner, const AttentionSizes& sizes, bool bias, const VisionDropouts& rates) {
  const std::uint64_t width = sizes.heads * sizes.head_size;
  return below("attention",
               join({below(inner, join({linear("query", width, width, bias), linear("key", width, width, bias),
                                        linear("value", width, width, bias), attention("attention", sizes),
                                        dropout("dropout", rates.attended)})),
                     linear("output.dense", width, width, true), dropout("output.dropout", rates.hidden)}));
}

Modules vit_mlp(std::uint64_t width, std::uint64_t intermediate, const std::string& function) {
  return plain_mlp("", "intermediate.dense", "output.dense", width, intermediate, function, true);
}

// Gives back the pixels that were masked: one convolution, whose channels are then shuffled into a square.
Modules masked_image_decoder(ModelConfig& config, const ImageSizes& image, std::uint64_t width,
                             std::uint64_t class_stride) {
  const std::uint64_t stride = config.size("encoder_stride", class_stride);
  return convolution("decoder.0", width, numbers_in_square(config, "encoder_stride", stride, image.channels), {1, 1},
                     true);
}

// A class token, learned positions, LayerNorm before each (modeling_vit.py).
void vit(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_image_encoder(config, {.hidden = 768, .intermediate = 3072, .layers = 12, .heads = 12});
  const ImageSizes image = read_image(config, {.channels = 3, .image = 224, .patch = 16});
  const bool masked = is(config, "ForMaskedImageModeling");
  const VisionDropouts rates = read_vision_dropouts(config);
  const Shape token{1, 1, a.hidden};
  a.max_positions = image.patches() + 1;
  model.describe(a);
  model.add(
      below("embeddings", join({parameter("cls_token", token), masked ? parameter("mask_token", token) : Modules{},
                                parameter("position_embeddings", {1, a.max_positions, a.hidden}),
                                patches_to_tokens("patch_embeddings.projection", image, a.hidden, true),
                                dropout("dropout", rates.hidden)})));
  model.blocks("encoder.layer", a.layers,
               join({vit_attention("attention", attention_sizes(a, false), config.flag("qkv_bias", true), rates),
                     vit_mlp(a.hidden, a.intermediate, config.text("hidden_act", "gelu")),
                     dropout("output.dropout", rates.hidden), layer_norm("layernorm_before", a.hidden),
                     layer_norm("layernorm_after", a.hidden)}));
  model.add(layer_norm("layernorm", a.hidden));
  if (is(config, "Model")) {
    const std::uint64_t pooled = config.optional_size("pooler_output_size").value_or(a.hidden);
    model.add(join({linear("pooler.dense", a.hidden, pooled, true),
                    activation("pooler.activation", config.text("pooler_act", "tanh"), pooled)}));
  }
  if (masked) model.add_outside(masked_image_decoder(config, image, a.hidden, 16));
  model.head("", false);
}

// int(mlp_ratio * width), as the classes compute it.
std::uint64_t scaled_width(const ModelConfig& config, double ratio, std::uint64_t width) {
  const double scaled = ratio * static_cast<double>(width);
  if (!(scaled >= 1 && scaled <= static_cast<double>(ModelConfig::kLargestSize)))
    config.fail("mlp_ratio", fmt::format("expected a factor that makes a size of {}, found {}", width, ratio));
  return static_cast<std::uint64_t>(scaled);
}

Modules layer_scale(const std::string& name, std::uint64_t width) {
  Modules scale = parameter(name + ".lambda1", {width});
  scale[0].input = scale[0].output = width;
  return scale;
}

// Two thirds of the width that mlp_ratio gives, rounded up to a multiple of 8.
Modules dinov2_gated_mlp(std::uint64_t width, std::uint64_t intermediate) {
  const std::uint64_t gated = (intermediate * 2 / 3 + 7) / 8 * 8;
  return below("mlp", join({linear("weights_in", width, 2 * gated, true), activation("act", "silu", gated),
                            multiply("gate", gated), linear("weights_out", gated, width, true)}));
}

// ViT with a learned scale for each residual; its classifier reads the class token beside the mean of the patches
// (modeling_dinov2.py).
void dinov2(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_image_encoder(config, {.hidden = 768, .layers = 12, .heads = 12});
  const ImageSizes image = read_image(config, {.channels = 3, .image = 224, .patch = 14});
  const VisionDropouts rates = read_vision_dropouts(config);
  a.intermediate = scaled_width(config, config.factor("mlp_ratio", 4), a.hidden);
  a.max_positions = image.patches() + 1;
  model.describe(a);
  model.add(below("embeddings",
                  join({parameter("cls_token", {1, 1, a.hidden}),
                        config.flag("use_mask_token", true) ? parameter("mask_token", {1, a.hidden}) : Modules{},
                        parameter("position_embeddings", {1, a.max_positions, a.hidden}),
                        patches_to_tokens("patch_embeddings.projection", image, a.hidden, true),
                        dropout("dropout", rates.hidden)})));
  const Modules mlp = config.flag("use_swiglu_ffn", false) ? dinov2_gated_mlp(a.hidden, a.intermediate)
                                                           : plain_mlp("mlp", "fc1", "fc2", a.hidden, a.intermediate,
                                                                       config.text("hidden_act", "gelu"), true);
  model.blocks("encoder.layer", a.layers,
               join({layer_norm("norm1", a.hidden),
                     vit_attention("attention", attention_sizes(a, false), config.flag("qkv_bias", true), rates),
                     layer_scale("layer_scale1", a.hidden), layer_norm("norm2", a.hidden), mlp,
                     layer_scale("layer_scale2", a.hidden), dropout("drop_path", config.number("drop_path_rate", 0))}));
  model.add(layer_norm("layernorm", a.hidden));
  if (is(config, "ForImageClassification"))
    model.add_outside(linear("classifier", 2 * a.hidden, config.labels(), true));
}

struct SwinStage {
  std::uint64_t width = 0;
  std::uint64_t depth = 0;
  std::uint64_t heads = 0;
};

std::vector<SwinStage> read_swin_stages(ModelConfig& config) {
  constexpr std::uint64_t deepest = 4096;  // blocks of a stage are listed one by one
  const auto depths = config.counts("depths").value_or(std::vector<std::uint64_t>{2, 2, 6, 2});
  const auto heads = config.counts("num_heads").value_or(std::vector<std::uint64_t>{3, 6, 12, 24});
  if (depths.empty()) config.fail("depths", "expected a number for each stage, found none");
  if (heads.size() != depths.size())
    config.fail("num_heads",
                fmt::format("expected {} numbers, one for each of depths, found {}", depths.size(), heads.size()));
  std::vector<SwinStage> stages;
  std::uint64_t width = config.size("embed_dim", 96);
  for (std::size_t i = 0; i < depths.size(); ++i, width *= 2) {
    if (width > ModelConfig::kLargestSize)
      config.fail("depths",
                  fmt::format("{} stages, each twice as wide as the one before, are too wide", depths.size()));
    if (depths[i] > deepest)
      config.fail("depths", fmt::format("expected at most {} blocks in a stage, found {}", deepest, depths[i]));
    if (heads[i] == 0 || width % heads[i] != 0)
      config.fail("num_heads",
                  fmt::format("expected a divisor of {}, the width of stage {}, found {}", width, i + 1, heads[i]));
    stages.push_back({.width = width, .depth = depths[i], .heads = heads[i]});
  }
  return stages;
}

// Attention inside windows, with one learned bias for each head and each distance in a window. What attention puts out is dropped at
// the rate of its probabilities.
Modules swin_block(const ModelConfig& config, const SwinStage& stage, std::uint64_t window, std::uint64_t mlp) {
  const AttentionSizes sizes{stage.heads, stage.heads, stage.width / stage.heads, false};
  const VisionDropouts rates = read_vision_dropouts(config);
  return join(
      {layer_norm("layernorm_before", stage.width),
       parameter("attention.self.relative_position_bias_table", {(2 * window - 1) * (2 * window - 1), stage.heads}),
       vit_attention("self", sizes, config.flag("qkv_bias", true), {rates.attended, rates.attended}),
       layer_norm("layernorm_after", stage.width), vit_mlp(stage.width, mlp, config.text("hidden_act", "gelu")),
       dropout("output.dropout", rates.hidden)});
}

// Samples are left out at rates from 0 in the first block of all to drop_path_rate in the last: `first` has none.
Modules swin_blocks(const ModelConfig& config, const Modules& block, std::uint64_t depth, bool first) {
  const Modules dropped = join({block, dropout("drop_path", config.number("drop_path_rate", 0.1))});
  Modules blocks = repeated("blocks", depth, dropped);
  if (first) std::erase_if(blocks, [](const Module& module) { return module.name == "blocks.0.drop_path"; });
  return blocks;
}

// Four neighbours become one token of twice the width.
Modules merging_of_patches(std::uint64_t width) {
  return below("downsample", join({linear("reduction", 4 * width, 2 * width, false), layer_norm("norm", 4 * width)}));
}

// One LayerNorm for each stage whose features a backbone puts out; the stem's are the embedding's.
Modules swin_backbone_norms(const ModelConfig& config, const std::vector<SwinStage>& stages) {
  std::vector<std::string> names{"stem"};
  for (std::size_t i = 1; i <= stages.size(); ++i) names.push_back(fmt::format("stage{}", i));
  std::vector<std::string> chosen{names.back()};
  if (const auto features = config.texts("out_features")) {
    chosen = *features;
  } else if (const auto indices = config.counts("out_indices")) {
    chosen.clear();
    for (const std::uint64_t index : *indices) {
      if (index >= names.size())
        config.fail("out_indices", fmt::format("expected at most {}, found {}", stages.size(), index));
      chosen.push_back(names[index]);
    }
  }
  Modules norms;
  for (std::size_t i = 0, next = 0; i < chosen.size(); ++i, ++next) {
    while (next < names.size() && names[next] != chosen[i]) ++next;
    if (next == names.size())
      config.fail(config.has("out_features") ? "out_features" : "out_indices",
                  fmt::format("expected stages of {} in their order, found {}", stages.size(), chosen[i]));
    norms = join({norms, layer_norm("hidden_states_norms." + chosen[i], stages[next == 0 ? 0 : next - 1].width)});
  }
  return norms;
}

// Stages, each a unit: the width doubles from one to the next (modeling_swin.py).
void swin(ModelConfig& config, ModelBuilder& model) {
  const std::vector<SwinStage> stages = read_swin_stages(config);
  const ImageSizes image = read_image(config, {.channels = 3, .image = 224, .patch = 4});
  const std::uint64_t window = config.size("window_size", 7);
  const double ratio = config.factor("mlp_ratio", 4);
  const std::uint64_t embedded = stages.front().width;
  const SwinStage last = stages.back();
  Architecture a{.hidden = last.width,
                 .intermediate = scaled_width(config, ratio, last.width),
                 .heads = last.heads,
                 .kv_heads = last.heads,
                 .head_size = last.width / last.heads,
                 .max_positions = image.patches(),
                 .image_side = image.image};
  for (const SwinStage& stage : stages) a.layers += stage.depth;
  model.describe(a);

  const bool masked = is(config, "ForMaskedImageModeling");
  const bool absolute = config.flag("use_absolute_embeddings", false);
  model.add(below("embeddings",
                  join({masked ? parameter("mask_token", {1, 1, embedded}) : Modules{},
                        absolute ? parameter("position_embeddings", {1, image.patches() + 1, embedded}) : Modules{},
                        patches_to_tokens("patch_embeddings.projection", image, embedded, true),
                        layer_norm("norm", embedded), dropout("dropout", read_vision_dropouts(config).hidden)})));
  model.blocks(
      "encoder.layers", stages.size(), [](std::uint64_t stage) { return stage; },
      [&](std::uint64_t i) {
        const SwinStage& stage = stages[i];
        const std::uint64_t mlp = scaled_width(config, ratio, stage.width);
        return join({swin_blocks(config, swin_block(config, stage, window, mlp), stage.depth, i == 0),
                     i + 1 < stages.size() ? merging_of_patches(stage.width) : Modules{}});
      });
  for (std::size_t i = 0; i < stages.size(); ++i) {
    for (std::uint64_t block = 0; block < stages[i].depth; ++block) {
      model.buffer(fmt::format("encoder.layers.{}.blocks.{}.attention.self.relative_position_index", i, block),
                   {window * window, window * window});
    }
  }
  if (is(config, "Backbone")) {
    model.add(swin_backbone_norms(config, stages));
    return;
  }
  model.add(layer_norm("layernorm", a.hidden));
  if (masked) model.add_outside(masked_image_decoder(config, image, a.hidden, 32));
  model.head("", false);
}

constexpr Head kVitHeads[] = {
    {"ForImageClassification", "vit", "classifier", HeadOutput::labels, true},
    {"Model", "", "", HeadOutput::none, false},
    {"ForMaskedImageModeling", "vit", "decoder.0", HeadOutput::custom, true},
};

constexpr Head kDinov2Heads[] = {
    {"Model", "", "", HeadOutput::none, false},
    {"ForImageClassification", "dinov2", "classifier", HeadOutput::custom, true},
    {"Backbone", "", "", HeadOutput::none, false},
};

constexpr Head kSwinHeads[] = {
    {"ForImageClassification", "swin", "classifier", HeadOutput::labels, true},
    {"Model", "", "", HeadOutput::none, false},
    {"ForMaskedImageModeling", "swin", "decoder.0", HeadOutput::custom, true},
    {"Backbone", "", "hidden_states_norms", HeadOutput::custom, false},
};

}  // namespace

std::span<const Family> vision_families() {
  static const Family families[] = {
      {"vit", "ViT", kVitHeads, {}, vit},
      {"dinov2", "Dinov2", kDinov2Heads, {}, dinov2},
      {"swin", "Swin", kSwinHeads, {}, swin},
  };
  return families;
}

}  // namespace shardplan
