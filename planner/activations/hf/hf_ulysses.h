// A text that several ranks share out, each with its part of the tokens, and in attention its part of the heads: DeepSpeed's Ulysses
// for transformers' models (Jacobs et al., arXiv 2309.14509, sec. 3; deepspeed 0.19, runtime/sequence_parallel/ulysses_sp.py,
// UlyssesSPAttentionHF). Its batches have positions, and no attention_mask; masks that a model makes are dropped.
#pragma once

#include <string>

#include "planner/activations/client.h"
#include "planner/activations/hf/hf_attention.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan {

// Why the ranks of setup.parallel.context cannot share a text of this model; empty where they can.
std::string ulysses_refuses(const Model& model, const Setup& setup, const ClientSetup& client);

// What a rank's own code sees: its part of each text.
ClientSetup seen_by_a_rank(const Setup& setup, ClientSetup client);

namespace autograd {

// Attention of this rank's heads over all tokens: of [b, heads, s / ranks, d], as attend() has it.
Value attend_exchanged(const ForwardContext& context, const Value& q, const Value& k, const Value& v,
                       const AttentionCall& call);

}  // namespace autograd
}  // namespace shardplan
