#include "planner/activations/hf/hf_images.h"

#include <fmt/format.h>

#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// get_placeholder_mask: whether each token stands for one of an image. It compares how many there are with what comes in their place,
// by a copy of these words.
Value placeholders(ForwardContext& context, const Value& words, const Value& features) {
  Tape& tape = context.tape;
  Value places = tape.allocate("eq", {context.batch(), context.tokens()}, DType::boolean);
  const Value chosen = tape.allocate("index", features.shape(), words.dtype());
  return places;
}

}  // namespace

std::uint64_t images_of(const ForwardContext& context) {
  return context.batch() * context.client.images;
}

std::uint64_t side_of(std::uint64_t square) {
  std::uint64_t side = 0;
  while ((side + 1) * (side + 1) <= square) ++side;
  return side;
}

Value text_with_images(ForwardContext& context, const TextWithImages& model) {
  const UnitView unit = required_unit(context, model.embedding);
  const Value ids = context.tape.outside({context.batch(), context.tokens()}, DType::i64);
  Value words = embedding(ids, unit[model.embedding].weight);
  if (model.words != nullptr) words = model.words(words);
  words = embedding_output(context, words);
  if (context.client.images == 0) return words;
  const Value features = model.features(context);
  require_places(context, features);
  required_unit(context, model.embedding);  // what follows is the embedding's again
  return masked_scatter(words, placeholders(context, words, features), features);
}

void require_places(const ForwardContext& context, const Value& features) {
  const std::uint64_t tokens = features.elements() / features.size(-1);
  if (tokens <= context.batch() * context.tokens()) return;
  throw NotModelled(fmt::format("{} tokens of images in a sequence of {}", tokens / context.batch(), context.tokens()));
}

void require_image_size(const ForwardContext& context, std::uint64_t patches, std::uint64_t side) {
  const ClientSetup& client = context.client;
  if (client.image_height == 0) return;
  if (client.image_height == client.image_width && client.image_height / side * (client.image_width / side) == patches)
    return;
  throw NotModelled(fmt::format("images (--image-size) of anything but {} square patches of {} pixels", patches, side));
}

Value shifted_loss(ForwardContext& context, const Value& logits) {
  if (context.client.mask == MaskKind::none) return shifted_loss_of_all(context, logits);
  Tape& tape = context.tape;
  const Shape most{context.batch(), context.tokens() - 1, logits.size(-1)};
  const std::uint64_t tokens = most[0] * most[1];
  const Value shifted =
      index_at(slice(logits, most), tape.allocate("ne", {most[0], most[1]}, DType::boolean), {tokens, logits.size(-1)});
  return cross_entropy(shifted, tape.allocate("labels", {tokens}, DType::i64));
}

}  // namespace shardplan::autograd
