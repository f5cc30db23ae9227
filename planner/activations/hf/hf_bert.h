// What BERT's kin share: the end of a block's halves, heads on an encoder of texts.
#pragma once

#include <string>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// BertSelfOutput, BertOutput, by the names below `prefix`: LayerNorm(dropout(dense(x)) + input).
Value output_part(const UnitView& block, const std::string& prefix, const Value& x, const Value& input);

// Mean cross entropy of the head of the file's architecture: words, or classes of a text or of its tokens. `hidden`: features of all
// tokens; where the model pools, the first token's are pooled. Throws NotModelled (hf_modules.h) for other heads.
Value encoder_loss(ForwardContext& context, const Value& hidden);

}  // namespace shardplan::autograd
