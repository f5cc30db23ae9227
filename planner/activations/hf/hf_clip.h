// CLIP's encoder of texts, for models that read what it says.
#pragma once

#include <cstdint>
#include <string>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

struct TextFeatures {
  Value states;  // of the tokens, [b, s, h]: what the last block read
  Value pooled;  // of the text, [b, p], projected
};

// CLIPTextModelWithProjection, called with output_hidden_states, of the modules below `base`.
TextFeatures clip_text(ForwardContext& context, const std::string& base, std::uint64_t tokens);

// CLIPVisionTransformer of the modules below `base`, called with output_hidden_states: what its block `state` reads, or past them
// what the last one says, [images, tokens, h]. The blocks behind it run too, and what they make is forgotten.
Value clip_image_state(ForwardContext& context, const std::string& base, std::uint64_t images, std::uint64_t state);

// SiglipVisionTransformer of the modules below `base`: features of all patches of this many images, behind the last norm.
Value siglip_features(ForwardContext& context, const std::string& base, std::uint64_t images);

}  // namespace shardplan::autograd
