// The block of Gemma 3's language model, for models that have one behind something else.
#pragma once

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

Value gemma3_block(ForwardContext& context, const UnitView& block, const Value& input);

}  // namespace shardplan::autograd
