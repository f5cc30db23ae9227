// A layer of Megatron-LM on a tape: attention (grouped, latent, to an encoder), MLP, mixture of experts.
//
// Sources as in megatron_ops.h; core/transformer/transformer_layer.py, attention.py, multi_latent_attention.py, mlp.py,
// moe/*.py.
#pragma once

#include "planner/activations/megatron/megatron_ops.h"

namespace shardplan::autograd {

// What goes into the model's other part: T5's encoder.
struct LayerInputs {
  Value hidden;   // [tokens, h]
  Value encoded;  // what cross-attention attends to; undefined without
};

Value megatron_layer_forward(MegatronContext& context, const MegatronLayer& layer, const LayerInputs& inputs);

}  // namespace shardplan::autograd
