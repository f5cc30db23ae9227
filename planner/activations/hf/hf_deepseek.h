// The block of DeepSeek-V3, for models that have one behind something else.
#pragma once

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

Value deepseek_v3_block(ForwardContext& context, const UnitView& block, const Value& input);

}  // namespace shardplan::autograd
