// torch.distributed.tensor as torchtitan uses it: what a rank of a tensor-parallel group allocates where a DTensor is brought from
// one placement to another (torch/distributed/tensor/placement_types.py, torch/distributed/_functional_collectives.py), and the
// operations that DTensor computes by itself.
//
// Texts are [b, s, features]; a rank's part is of s or of features, as said. With one rank none of this is a DTensor, and nothing
// is allocated.
#pragma once

#include <cstdint>

#include "planner/activations/tape.h"
#include "planner/activations/unit_view.h"

namespace shardplan::autograd {

// DTensor.from_local: gradients of what comes out are added up apart.
Value distributed(const Value& x, std::uint64_t ranks);

// Shard(1) to Replicate: an all-gather, whose parts lie one behind the other and are copied into the text. Its backward is the other.
Value gathered(const Value& x, std::uint64_t ranks);
// Partial to Shard(1): a copy of the parts one behind the other, and a reduce-scatter.
Value scattered(const Value& x, std::uint64_t ranks);
// Shard(-1) to Replicate, of a part of `size` features; its backward copies this rank's part of the gradient.
Value gathered_features(const Value& x, std::uint64_t ranks, std::uint64_t size);

// RowwiseParallel of nn.Embedding: each rank looks up the words that it has, and the sum is scattered. The gradient that each rank
// makes is of all `words`.
Value parallel_embedding(const Value& tokens, const Value& weight, std::uint64_t ranks, std::uint64_t words);

// Mean cross entropy of [tokens, this rank's words] in fp32 under loss_parallel (torch/distributed/tensor/parallel/loss.py).
Value parallel_cross_entropy(const Value& logits);

}  // namespace shardplan::autograd
