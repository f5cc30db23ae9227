// Llama 4's encoder of images, for the model that has it in front of its language model.
#pragma once

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// vision_model and multi_modal_projector on all images of the batch: what their tokens are replaced by, [tokens, hidden].
Value llama4_image_features(ForwardContext& context);

}  // namespace shardplan::autograd
