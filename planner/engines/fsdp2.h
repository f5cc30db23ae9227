// PyTorch FSDP2 (torch.distributed.fsdp.fully_shard), as of torch 2.15.
//
// fully_shard is applied to each unit of a run that repeats and to the root, which keeps everything else: embeddings,
// norms, the head. Every parameter is split on dim 0 into chunks of ceil(dim0 / N) rows; ranks whose chunk is shorter or
// empty hold padding. The sharded parameter, in the master's dtype, is the master.
//   stage 3: units are released after their forward and gathered again; stage 2: kept (reshard_after_forward=False).
//   stages 0 and 1 do not exist there.
// Without gradient_sync (a pipeline) whole gradients of all units, and what was gathered, stay until the last micro-batch; then they
// are reduced unit by unit. The input of one reduction is counted beside the activations, of which nothing is left by then.
//
// Optimizers hold states of each rank's shard, in its shape: torch.optim.AdamW, Muon and torchao's AdamW8bit make them like
// the local tensor. Adafactor, torch's (2.15) and transformers' (4.57), fails on sharded parameters: what is said is what
// one holds that factors the rows of a rank. With the optimizer in the backward (hooks that run as soon as a unit is
// reduced: _fsdp_collectives.py, foreach_reduce) no more than one unit's sharded gradients are there.
#pragma once

#include "planner/engines/engine.h"

namespace shardplan {

// What rank 0 holds of one tensor: ceil(dim0 / ranks) x the other dims. A scalar counts as dim 0 of 1.
std::uint64_t fsdp2_shard_elements(const Shape& shape, std::uint64_t ranks);
// What the last rank holds of it: the rest, which may be nothing.
std::uint64_t fsdp2_last_shard_elements(const Shape& shape, std::uint64_t ranks);

// What gradients are reduced in, and so what they travel in.
DType fsdp2_reduce_dtype(const Policy& policy, const Fsdp2Options& options);

// What whole gradients wait in, without gradient_sync (FSDPParam.unsharded_grad_dtype).
DType fsdp2_waiting_dtype(const Policy& policy, const Fsdp2Options& options);

// Throws ConfigError for stages 0 and 1.
EngineTerms fsdp2_terms(const Catalog& catalog, const Setup& setup, const Fsdp2Options& options);

}  // namespace shardplan
