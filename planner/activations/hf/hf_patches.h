// Images as tokens.
#pragma once

#include <cstdint>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// A convolution that cuts each image into `count` patches, [images, patches, width]. Images are the batch's. Throws NotModelled
// (hf_modules.h) where --image-size says another size.
Value patches(ForwardContext& context, const Parameters& projection, std::uint64_t count, std::uint64_t images);

// `token`, which the model owns, before the patches of each image.
Value behind_token(const Value& token, const Value& patches);

// Queries and keys times complex numbers, one for each patch and pair of features, in fp32 (vision_apply_rotary_emb).
void rotate_patches(Value& q, Value& k, const Value& rotations);

}  // namespace shardplan::autograd
