// What Chameleon reads: words, some of which stand for images.
#pragma once

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// The words that stand for the images of the batch (--images of --image-size), [images, words of each] of int32: what the VQ encoder
// makes of their pixels. Throws NotModelled (hf_modules.h).
Value chameleon_image_tokens(ForwardContext& context);

}  // namespace shardplan::autograd
