// Attention of a text that several ranks share (torch/distributed/tensor/experimental/_context_parallel/_attention.py): each rank has
// two pieces of the text, one from its front and one from its end, and the keys and values of the others come round.
#pragma once

#include <cstdint>

#include "planner/activations/tape.h"

namespace shardplan::autograd {

struct ContextRing {
  std::uint64_t ranks = 1;
  // Keys and values of all ranks at once (allgather); false: of one other rank at a time (alltoall).
  bool gathers = true;
};

// As scaled_dot_product_attention without a mask, causal, by FlashAttention's kernel: q, k, v [b, h, s, d] of this rank's part, with as
// many key heads as query heads. Of the ranks the one but the last is meant, which holds most: it merges results of all its queries
// and of its last half alone.
Value ring_attention(const Value& q, const Value& k, const Value& v, const ContextRing& ring);

}  // namespace shardplan::autograd
