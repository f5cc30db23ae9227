// What language models that see have in common: images' features in the place of the words that stand for them, and the loss of
// those classes that shift logits and labels themselves.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

struct TextWithImages {
  std::string_view embedding;         // of words
  Value (*words)(const Value&) = {};  // what is made of them at once, if anything
  // What the images' tokens are replaced by, [images, tokens, hidden] or [tokens, hidden].
  Value (*features)(ForwardContext& context) = {};
};

// The words of a batch, and behind them, where it has images, get_placeholder_mask and masked_scatter. Throws NotModelled
// (hf_modules.h) where images have more tokens than the texts.
Value text_with_images(ForwardContext& context, const TextWithImages& model);

// Throws NotModelled where images have more tokens than the texts.
void require_places(const ForwardContext& context, const Value& features);

// How many images the batch has.
std::uint64_t images_of(const ForwardContext& context);

// How many are on a side of a square of so many.
std::uint64_t side_of(std::uint64_t square);

// The processor brings every image to the one size that a tower has positions for: throws NotModelled where --image-size says another
// one than `patches` square patches of `side` pixels.
void require_image_size(const ForwardContext& context, std::uint64_t patches, std::uint64_t side);

// Mean cross entropy of all tokens but the last of each text, in the logits' dtype: of those that the batch's mask leaves, where it has
// one, copied; else as shifted_loss_of_all (hf_modules.h).
Value shifted_loss(ForwardContext& context, const Value& logits);

}  // namespace shardplan::autograd
