// Attention as models of transformers call it, and the masks that they make for it (4.57).
#pragma once

#include <cstdint>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// Makes what masks of a decoder's attention need (masking_utils.py, create_causal_mask), if anything:
//   eager  a mask of all pairs in the hidden features' dtype, to be added to the scores
//   sdpa   a boolean one; none where no token is padding, since the kernel is causal itself. A batch without
//          attention_mask and a model without a cache are taken for packed texts, which need one.
// `window`: tokens that a token sees, itself included; 0: all. Shorter than the text it needs a mask.
// `images`: tokens of an image see all of it, which needs a mask too (or_mask_function).
// `tokens_of_text`: of a decoder whose text is not the batch's own, which has no attention_mask either; 0: the batch's.
Value make_causal_mask(ForwardContext& context, std::uint64_t window = 0, bool images = false,
                       std::uint64_t tokens_of_text = 0);

struct AttentionCall {
  Value mask{};
  double dropout = 0;  // of the probabilities
  bool softcap = false;
  bool causal = true;  // without a mask: every token sees those before it
  // The probabilities, where they are a tensor, to the block: a variable of its holds them until it returns.
  bool returned = true;
};

// DynamicCache.update: the first keys and values of a layer are appended to nothing, which copies them.
void cache(const ForwardContext& context, Value& k, Value& v);

// [b, g, s, d] to [b, g x times, s, d] (repeat_kv): copies, but of one head a view that shows it as often.
Value repeat_kv(const Value& x, std::uint64_t times);

// q [b, h, s, d], k [b, g, t, d], v [b, g, t, e] to [b, s, h x e], by the context's kind of attention: eager_attention_forward
// of modeling_llama.py, or sdpa_attention_forward of integrations/sdpa_attention.py.
Value attend(ForwardContext& context, const Value& q, const Value& k, const Value& v, const AttentionCall& call);

// Whether the tokens of this block see those in their window alone; and the mask of either.
bool in_window(const UnitView& block, const AttentionSizes& sizes);
const Value& mask_of(const ForwardContext& context, const UnitView& block, const AttentionSizes& sizes);

// [b, s, h x d] to [b, h, s, d].
Value split_heads(const Value& x, std::uint64_t heads);

}  // namespace shardplan::autograd
