// What state-space models share: the block around a mixer, and the model around the blocks.
#pragma once

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// x + mixer(norm(x)); what is carried from block to block is fp32 where the model says so.
Value block_around(ForwardContext& context, const UnitView& block, const Value& input, BlockForward mixer);

// Embedding, blocks, norm, head, and the loss of logits that are cast to fp32.
Value state_space_lm(ForwardContext& context, BlockForward block,
                     Value (*loss)(ForwardContext& context, const Value& logits));

}  // namespace shardplan::autograd
