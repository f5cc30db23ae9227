// Causal self-attention with several heads: each byte of a sequence gathers the values of the bytes up to itself,
// weighted by softmax(q k^T / sqrt(size of a head)).
//
// A row of qkv is one byte's queries, keys and values, each with the heads side by side; rows of a sequence follow one
// another. `probabilities` holds a square matrix for each (sequence, head): its columns are the context, its rows the
// number of heads times those of qkv.
#pragma once

#include "tools/train/math.h"

namespace shardplan {

void attention(ConstMatrix qkv, Matrix probabilities, Matrix result);

// From the result's gradient to that of qkv. `d_scores` is workspace for one square matrix.
void attention_backward(ConstMatrix d_result, ConstMatrix qkv, ConstMatrix probabilities, Matrix d_scores,
                        Matrix d_qkv);

}  // namespace shardplan
