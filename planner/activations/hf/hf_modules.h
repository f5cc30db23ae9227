// Modules of torch.nn and of transformers as a unit has them: by name, with what its family says of each.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "planner/activations/hf/hf_attention.h"
#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// Thrown where a model asks for something that no forward has: the text names it. activity_of makes it a reason.
struct NotModelled : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// nn.Dropout; the rate is 0 where the unit has no such module.
double dropout_rate(const UnitView& unit, std::string_view module);
Value dropout(const Value& x, const UnitView& unit, std::string_view module);
// The part of a sample that is left out as a whole, and what is left divided by the rate that is not (modeling_beit.py, drop_path).
Value drop_path(const Value& x, double rate);
// Of a module outside the blocks, whichever unit it is in.
double dropout_rate(const ForwardContext& context, std::string_view module);

// A function of transformers' ACT2FN (activations.py), by the name that a config has for it. Throws NotModelled.
Value activate(const Value& x, std::string_view function);
Value activate(const Value& x, const UnitView& unit, std::string_view module);

// The attention of the first blocks, of a stack of this name if it is not empty. Throws NotModelled.
const AttentionSizes& attention_of(const ForwardContext& context, std::string_view stack = {});

// What stands before the name of a module in this model: "transformer." of transformer.wte, nothing in a bare base model.
std::string prefix_of(const ForwardContext& context, std::string_view module);

// Positions 0, 1, ... of tokens, as int64.
Value arange(ForwardContext& context, std::uint64_t count);

// The mask of models that make one themselves (_update_causal_mask): eager attention adds it to the scores, sdpa takes
// none where no token is padding and no window is shorter than the text. `always`: the model makes an attention_mask of
// ones where the batch has none.
Value make_older_mask(ForwardContext& context, bool always, std::uint64_t window = 0);

// The batch's mask as a number for each pair of tokens (modeling_attn_mask_utils.py, _prepare_4d_attention_mask).
Value padding_of_pairs(ForwardContext& context);
// For this many queries, as cross-attention has them.
Value padding_of_pairs(ForwardContext& context, std::uint64_t queries);

// softmax(q k^T x scale + mask) v, all in the model's dtype: eager_attention_forward of BERT, BART, Whisper and others.
Value eager_attention(ForwardContext& context, const Value& q, const Value& k, const Value& v,
                      const AttentionCall& call);

// x[:, 0] of [b, s, h].
Value first_token(const Value& x);

// Of a bare encoder: what its pooler makes of the first token is no part of the loss, and lives until the model has returned.
void pool_aside(ForwardContext& context, const Value& hidden);

// Mean cross entropy of every token in the logits' dtype, with labels of the batch.
Value token_loss(const Value& logits);

// Mean cross entropy of all tokens but the last of each text, as models compute it that shift logits and labels themselves: copies of
// both, or of one text views.
Value shifted_loss_of_all(ForwardContext& context, const Value& logits);

// The loss of a decoder's head "score", which knows labels, not words: of each text or of each token; of a bare model the
// sum of its features. `hidden` itself where that is another rank's. Throws NotModelled of any other head than `words`.
Value label_loss(ForwardContext& context, std::string_view words, const Value& hidden);
// A head's logits of all tokens and their causal loss; `wide`: logits are cast to fp32 as they are made. label_loss() where
// this rank has no `head`.
Value language_loss(ForwardContext& context, std::string_view head, const Value& hidden, bool wide = false);

}  // namespace shardplan::autograd
