// Gemma 3 with images (modeling_gemma3.py of transformers 4.57, Gemma3ForConditionalGeneration): SigLIP on each image, a projector
// that pools neighbouring patches, and Gemma 3's language model behind it. The batch says which tokens are an image's
// (token_type_ids), as its processor does.
#include "planner/activations/hf/hf_gemma3.h"

#include <fmt/format.h>

#include <array>

#include "planner/activations/hf/hf_clip.h"
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

// The processor brings every image to the one size that the tower has positions for.
void require_image_size(ForwardContext& context, const std::string& tower) {
  if (context.client.image_height == 0) return;
  const UnitView unit = required_unit(context, tower + "embeddings.patch_embedding");
  const std::uint64_t patch = unit[tower + "embeddings.patch_embedding"].weight.size(-1);
  const std::uint64_t patches = unit.module(tower + "embeddings.position_embedding").input;
  if (context.client.image_height == context.client.image_width &&
      context.client.image_height / patch * (context.client.image_width / patch) == patches) {
    return;
  }
  throw NotModelled(
      fmt::format("images (--image-size) of anything but {} square patches of {} pixels", patches, patch));
}

// get_image_features: what the images' tokens are replaced by, [images, tokens, hidden].
Value image_features(ForwardContext& context) {
  const std::string tower = "vision_tower.vision_model.";
  if (context.client.images == 0) throw NotModelled("texts without images (--images 0)");
  require_image_size(context, tower);
  return projected(context, siglip_features(context, tower, context.batch() * context.client.images));
}

Value embedded(ForwardContext& context) {
  const std::string name = "language_model.model.embed_tokens";
  const UnitView unit = required_unit(context, name);
  const Value ids = context.tape.outside({context.batch(), context.tokens()}, DType::i64);
  const Value words = embedding_output(context, scale(embedding(ids, unit[name].weight)));
  const Value features = image_features(context);
  if (features.size(0) * features.size(1) > context.batch() * context.tokens()) {
    throw NotModelled(fmt::format("{} tokens of images in a sequence of {}", context.client.images * features.size(1),
                                  context.tokens()));
  }
  required_unit(context, name);  // what follows is the embedding's again
  context.tape.keep(features);   // the model returns them
  const Value places = context.tape.allocate("eq", ids.shape(), DType::boolean);
  return masked_scatter(words, places, features);
}

// Logits of all tokens but the last, copied; by the batch's mask where it has one.
Value shifted_loss(ForwardContext& context, Value logits) {
  Tape& tape = context.tape;
  logits = to(logits, DType::f32);
  if (context.client.keeps_outputs) tape.keep(logits);
  const std::uint64_t tokens = context.batch() * (context.tokens() - 1);
  const Shape rows{tokens, logits.size(-1)};
  if (context.client.mask == MaskKind::none) return shifted_loss_of_all(context, logits);
  const Value most = slice(logits, {context.batch(), context.tokens() - 1, logits.size(-1)});
  const Value shifted =
      index_at(most, tape.allocate("ne", {context.batch(), context.tokens() - 1}, DType::boolean), rows);
  return cross_entropy(shifted, tape.allocate("labels", {tokens}, DType::i64));
}

Value gemma3_with_images(ForwardContext& context) {
  return causal_lm(context, {.block = gemma3_block,
                             .stack = "language_model.model.layers",
                             .embed = embedded,
                             .norm = gemma_norm,
                             .embedding = "language_model.model.embed_tokens",
                             .last_norm = "language_model.model.norm",
                             .head = "language_model.lm_head",
                             .loss = shifted_loss,
                             .masks = Masks::both,
                             .masks_of_images = true,
                             .two_tables = true,
                             .never_caches = true});
}

}  // namespace

std::span<const HfFamily> hf_gemma3_families() {
  static constexpr HfFamily families[] = {{"gemma3", gemma3_with_images}};
  return families;
}

}  // namespace shardplan::autograd
