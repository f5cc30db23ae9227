// Layers that models of transformers share.
#pragma once

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

Value linear(const Value& x, const Parameters& layer);

// LlamaRMSNorm and its kin: in fp32, weighted in the input's dtype (modeling_llama.py).
Value rms_norm(const Value& x, const Value& weight);

// apply_rotary_pos_emb: x cos + rotate_half(x) sin; x [b, h, s, d], cos and sin [b, s, d].
Value rotate(const Value& x, const Value& cos, const Value& sin);
// Queries, then keys, by the context's cosines and sines; both stay until the second is there.
void rotate(Value& q, Value& k, const ForwardContext& context);

// The cosines and sines of all positions, in the dtype of the hidden features: made once, without gradients
// (LlamaRotaryEmbedding).
void make_rotary(ForwardContext& context, std::uint64_t head_size);

// logits in fp32, and their mean cross entropy (loss/loss_utils.py, ForCausalLMLoss).
Value causal_loss(ForwardContext& context, const Value& logits);

// The model around the blocks of a decoder: embedding, blocks, norm, head, loss.
Value causal_lm(ForwardContext& context, BlockForward block);

}  // namespace shardplan::autograd
