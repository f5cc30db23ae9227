// Llama's block, for models that have one behind something else.
#pragma once

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// modeling_llama.py; Mistral and Qwen2 differ in biases and windows.
Value llama_block(ForwardContext& context, const UnitView& block, const Value& input);

}  // namespace shardplan::autograd
