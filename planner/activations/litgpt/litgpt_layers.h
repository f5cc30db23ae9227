// Layers of LitGPT (litgpt/model.py, litgpt/lora.py).
#pragma once

#include <string_view>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// RMSNorm in fp32, by 1 + weight where the module says "unit_offset", or nn.LayerNorm.
Value litgpt_norm(const Parameters& layer, const Value& x);

// nn.Linear, or LoRALinear around it.
Value litgpt_linear(const UnitView& unit, std::string_view name, const Value& x);

// [b, s, h] to the same.
Value litgpt_block(ForwardContext& context, const UnitView& block, const Value& input);

}  // namespace shardplan::autograd
