// Gemma 3 with images (modeling_gemma3.py of transformers 4.57, Gemma3ForConditionalGeneration): SigLIP on each image, a projector
// that pools neighbouring patches, and Gemma 3's language model behind it. The batch says which tokens are an image's
// (token_type_ids), as its processor does.
#include "planner/activations/hf/hf_gemma3.h"

#include "planner/activations/hf/hf_clip.h"
#include "planner/activations/hf/hf_images.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// Gemma3MultiModalProjector: [images, patches, width] to [images, tokens, hidden].
Value projected(ForwardContext& context, const Value& patches) {
  const UnitView unit = required_unit(context, "multi_modal_projector.mm_soft_emb_norm");
  const std::uint64_t images = patches.size(0);
  const std::uint64_t width = patches.size(2);
  const std::uint64_t tokens = unit.module("multi_modal_projector.avg_pool").output;
  const Value square = copied(transpose(patches), {images, width, patches.size(1)});
  const Value pooled = transpose(average_pooled(square, {images, width, tokens}));
  const Value normed = gemma_norm(unit["multi_modal_projector.mm_soft_emb_norm"], pooled);
  const Value rows = view(images > 1 ? normed : normed.laid_out(Layout::in_order), {images * tokens, width});
  const Value weight = unit.tensor("multi_modal_projector.mm_input_projection_weight");
  const Value features = matmul(rows, weight, {rows.size(0), weight.size(1)});
  return view(features, {images, tokens, weight.size(1)});
}

// get_image_features: what the images' tokens are replaced by, [images, tokens, hidden].
Value image_features(ForwardContext& context) {
  const std::string tower = "vision_tower.vision_model.";
  const UnitView unit = required_unit(context, tower + "embeddings.patch_embedding");
  require_image_size(context, unit.module(tower + "embeddings.position_embedding").input,
                     unit[tower + "embeddings.patch_embedding"].weight.size(-1));
  Value features = projected(context, siglip_features(context, tower, images_of(context)));
  context.tape.keep(features);  // the model returns them
  return features;
}

Value embedded(ForwardContext& context) {
  return text_with_images(
      context, {.embedding = "language_model.model.embed_tokens", .words = scale, .features = image_features});
}

Value wide_loss(ForwardContext& context, Value logits) {
  logits = to(logits, DType::f32);
  if (context.client.keeps_outputs) context.tape.keep(logits);
  return shifted_loss(context, logits);
}

Value gemma3_with_images(ForwardContext& context) {
  return causal_lm(context, {.block = gemma3_block,
                             .stack = "language_model.model.layers",
                             .embed = embedded,
                             .norm = gemma_norm,
                             .embedding = "language_model.model.embed_tokens",
                             .last_norm = "language_model.model.norm",
                             .head = "language_model.lm_head",
                             .loss = wide_loss,
                             .masks = Masks::both,
                             .masks_of_images = true,
                             .two_tables = true,
                             .hands_all_tables = true,
                             .never_caches = true});
}

}  // namespace

std::span<const HfFamily> hf_gemma3_families() {
  static constexpr HfFamily families[] = {{"gemma3", gemma3_with_images}};
  return families;
}

}  // namespace shardplan::autograd
