// LLaVA (modeling_llava.py of transformers 4.57, LlavaForConditionalGeneration): CLIP on each image, of which the projector reads what
// one of its blocks does, and a language model like Llama's.
#include <array>
#include <string>
#include <vector>

#include "planner/activations/hf/hf_clip.h"
#include "planner/activations/hf/hf_diffusers.h"
#include "planner/activations/hf/hf_images.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_llama.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// LlavaMultiModalProjector, without the tower's own token where the strategy is "default".
Value projected(const UnitView& unit, const Value& state) {
  const Parameters first = unit["multi_modal_projector.linear_1"];
  const bool all = unit.module("multi_modal_projector.vision_feature").function == "full";
  Value hidden = all ? linear(state, first)
                     : linear_of_part(slice(state, {state.size(0), state.size(1) - 1, state.size(2)}), first);
  hidden = activate(hidden, unit, "multi_modal_projector.act");
  return linear(hidden, unit["multi_modal_projector.linear_2"]);
}

// get_image_features, which takes the images apart, and its caller, which puts them one behind the other.
Value image_features(ForwardContext& context) {
  const std::string tower = "vision_tower.vision_model.";
  const UnitView unit = required_unit(context, "multi_modal_projector.linear_1");
  const Value features = [&] {
    const std::uint64_t state = unit.module("multi_modal_projector.vision_feature").input;
    const Value read = clip_image_state(context, tower, images_of(context), state);
    required_unit(context, "multi_modal_projector.linear_1");  // what follows is the projector's
    Value said = projected(unit, read);
    context.tape.release_kept();  // what the tower returned
    return said;
  }();
  const Shape image{features.size(1), features.size(2)};
  const std::vector<Value> images = parts_of(features, std::vector<Shape>(features.size(0), image));
  Value joined = cat(images, {features.size(0) * image[0], image[1]});
  context.tape.keep(joined);  // the model returns them
  return joined;
}

Value text_and_images(ForwardContext& context) {
  return text_with_images(context, {.embedding = "language_model.model.embed_tokens", .features = image_features});
}

Value llava(ForwardContext& context) {
  // Qwen2 says of each layer whether it has a window, Mistral of all.
  const bool by_layer = !attention_of(context, "language_model.model.layers").whole.empty();
  return causal_lm(context, {.block = llama_block,
                             .stack = "language_model.model.layers",
                             .embed = text_and_images,
                             .embedding = "language_model.model.embed_tokens",
                             .last_norm = "language_model.model.norm",
                             .head = "language_model.lm_head",
                             .masks = by_layer ? Masks::window_if_asked : Masks::one});
}

}  // namespace

std::span<const HfFamily> hf_llava_families() {
  static constexpr HfFamily families[] = {{"llava", llava}};
  return families;
}

}  // namespace shardplan::autograd
