// CLIP and its kin: an encoder of texts and one of images, brought to the same features.
#include "planner/families/vision.h"

namespace shardplan {
namespace {

bool is(const ModelConfig& config, std::string_view head) {
  return config.head().suffix == head;
}

// One block for images and for texts.
Modules clip_block(const ModelConfig& config, const Architecture& a, const std::string& function) {
  return join(
      {split_attention("self_attn", a, {.bias = true, .output_bias = true, .rotary = false, .output = "out_proj"}),
       dropout("self_attn.dropout", config.number("attention_dropout", 0)), layer_norm("layer_norm1", a.hidden),
       plain_mlp("mlp", "fc1", "fc2", a.hidden, a.intermediate, function, true), layer_norm("layer_norm2", a.hidden)});
}

void text_encoder(const ModelConfig& config, ModelBuilder& model, const Architecture& a, const std::string& function) {
  model.describe(a);
  model.add(below("embeddings", join({embedding("token_embedding", a.vocabulary, a.hidden),
                                      embedding("position_embedding", a.max_positions, a.hidden)})));
  model.blocks("encoder.layers", a.layers, clip_block(config, a, function));
  model.add(layer_norm("final_layer_norm", a.hidden));
}

void image_encoder(const ModelConfig& config, ModelBuilder& model, const Architecture& a, const std::string& function,
                   Modules embeddings) {
  model.describe(a);
  model.add(std::move(embeddings));
  model.blocks("encoder.layers", a.layers, clip_block(config, a, function));
  model.add(layer_norm("post_layernorm", a.hidden));
}

void clip_text(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(
      config,
      {.vocabulary = 49408, .hidden = 512, .intermediate = 2048, .layers = 12, .heads = 8, .max_positions = 77});
  text_encoder(config, model, a, config.text("hidden_act", "quick_gelu"));
  if (is(config, "TextModelWithProjection"))
    model.add_outside(linear("text_projection", a.hidden, config.size("projection_dim", 512), false));
}

void clip_vision(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_image_encoder(config, {.hidden = 768, .intermediate = 3072, .layers = 12, .heads = 12});
  const ImageSizes image = read_image(config, {.channels = 3, .image = 224, .patch = 32});
  a.max_positions = image.patches() + 1;
  image_encoder(config, model, a, config.text("hidden_act", "quick_gelu"),
                join({parameter("embeddings.class_embedding", {a.hidden}),
                      patches_to_tokens("embeddings.patch_embedding", image, a.hidden, false),
                      embedding("embeddings.position_embedding", a.max_positions, a.hidden),
                      layer_norm("pre_layrnorm", a.hidden)}));
  if (is(config, "VisionModelWithProjection"))
    model.add_outside(linear("visual_projection", a.hidden, config.size("projection_dim", 512), false));
}

void siglip_text(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_decoder(
      config,
      {.vocabulary = 32000, .hidden = 768, .intermediate = 3072, .layers = 12, .heads = 12, .max_positions = 64});
  text_encoder(config, model, a, config.text("hidden_act", "gelu_pytorch_tanh"));
  model.add(linear("head", a.hidden, config.optional_size("projection_size").value_or(a.hidden), true));
}

// One learned query attends to all patches.
Modules pooling_by_attention(const Architecture& a, const std::string& function) {
  Modules projections = linear("attention", a.hidden, 3 * a.hidden, true);
  projections[0].tensors[0].name = "in_proj_weight";
  projections[0].tensors[1].name = "in_proj_bias";
  return below("head", join({parameter("probe", {1, 1, a.hidden}), projections,
                             attention("attention.attention", attention_sizes(a, false)),
                             linear("attention.out_proj", a.hidden, a.hidden, true), layer_norm("layernorm", a.hidden),
                             plain_mlp("mlp", "fc1", "fc2", a.hidden, a.intermediate, function, true)}));
}

void siglip_vision(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_image_encoder(config, {.hidden = 768, .intermediate = 3072, .layers = 12, .heads = 12});
  const ImageSizes image = read_image(config, {.channels = 3, .image = 224, .patch = 16});
  const std::string function = config.text("hidden_act", "gelu_pytorch_tanh");
  a.max_positions = image.patches();
  image_encoder(config, model, a, function,
                join({patches_to_tokens("embeddings.patch_embedding", image, a.hidden, true),
                      embedding("embeddings.position_embedding", a.max_positions, a.hidden)}));
  if (config.flag("vision_use_head", true)) model.add(pooling_by_attention(a, function));
}

constexpr Head kTextHeads[] = {
    {"TextModel", "text_model", "", HeadOutput::none, false},
    {"TextModelWithProjection", "text_model", "text_projection", HeadOutput::custom, false},
};

constexpr Head kVisionHeads[] = {
    {"VisionModel", "vision_model", "", HeadOutput::none, false},
    {"VisionModelWithProjection", "vision_model", "visual_projection", HeadOutput::custom, false},
};

constexpr Head kPairHeads[] = {
    {"Model", "", "", HeadOutput::none, false},
    {"ForImageClassification", "", "classifier", HeadOutput::custom, true},
};

constexpr Family kClipText{"clip_text_model", "CLIP", kTextHeads, {}, clip_text};
constexpr Family kClipVision{"clip_vision_model", "CLIP", kVisionHeads, {}, clip_vision};
constexpr Family kSiglipText{"siglip_text_model", "Siglip", std::span(kTextHeads).first(1), {}, siglip_text};
constexpr Family kSiglipVision{"siglip_vision_model", "Siglip", std::span(kVisionHeads).first(1), {}, siglip_vision};

// The encoder of images alone, and a classifier on it. True if that is what the file wants.
bool classifies_images(ModelConfig& config, ModelBuilder& model, const ModelConfig& vision) {
  if (!is(config, "ForImageClassification")) return false;
  model.nested("", vision, ModelBuilder::Part::main);
  model.add_outside(linear("classifier", width_of(vision, 768), config.labels(), true));
  return true;
}

// An encoder of texts and one of images, each projected to the same features (modeling_clip.py).
void clip(ModelConfig& config, ModelBuilder& model) {
  // Old files have the parts a second time, and it is this one that counts (configuration_clip.py).
  const auto key = [&](std::string_view name, std::string_view older) { return config.has(older) ? older : name; };
  const ModelConfig text = config.nested(key("text_config", "text_config_dict"), kClipText, "TextModel");
  const ModelConfig vision = config.nested(key("vision_config", "vision_config_dict"), kClipVision, "VisionModel");
  if (classifies_images(config, model, vision)) return;
  model.add(parameter("logit_scale", {}));
  model.nested("", text, ModelBuilder::Part::main);
  model.nested("", vision, ModelBuilder::Part::tower);
  const std::uint64_t features = config.size("projection_dim", 512);
  model.add(join({linear("visual_projection", width_of(vision, 768), features, false),
                  linear("text_projection", width_of(text, 512), features, false)}));
}

// CLIP with a sigmoid for each pair instead of a softmax over all, so with a bias too (modeling_siglip.py).
void siglip(ModelConfig& config, ModelBuilder& model) {
  const ModelConfig vision = config.nested("vision_config", kSiglipVision, "VisionModel");
  if (classifies_images(config, model, vision)) return;
  model.add(join({parameter("logit_scale", {1}), parameter("logit_bias", {1})}));
  model.nested("", config.nested("text_config", kSiglipText, "TextModel"), ModelBuilder::Part::main);
  model.nested("", vision, ModelBuilder::Part::tower);
}

}  // namespace

std::span<const Family> clip_families() {
  static const Family families[] = {
      {"clip", "CLIP", kPairHeads, {}, clip},       kClipText,   kClipVision,
      {"siglip", "Siglip", kPairHeads, {}, siglip}, kSiglipText, kSiglipVision,
  };
  return families;
}

}  // namespace shardplan
