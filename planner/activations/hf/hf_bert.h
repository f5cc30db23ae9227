// What BERT's kin share: heads on an encoder of texts.
#pragma once

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// Mean cross entropy of the head of the file's architecture: words, or classes of a text or of its tokens. `hidden`: features of all
// tokens; where the model pools, the first token's are pooled. Throws NotModelled (hf_modules.h) for other heads.
Value encoder_loss(ForwardContext& context, const Value& hidden);

}  // namespace shardplan::autograd
