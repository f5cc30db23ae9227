// Megatron-LM (core/distributed/param_and_grad_buffer.py, core/optimizer/): parameters and gradients in contiguous buffers.
//
//   no distributed optimizer   2 + 4 + 12 bytes per parameter with bf16, no padding
//   distributed optimizer      6 + 12/N: parameters and main gradients stay whole, in buffers whose parameters start at
//                              multiples of 64 elements and whose buckets end at multiples of lcm(N, 128[, 65536]);
//                              parameters go in from the last to the first
//   its FSDP                   per unit; optim, optim_grads and optim_grads_params shard what they say
//
// Stage 0 is the first, 1 the second, 2 and 3 its FSDP with optim_grads and optim_grads_params, unless options say more.
#pragma once

#include "planner/engines/engine.h"

namespace shardplan {

// The padded length of one buffer and what pads it.
struct MegatronBuffer {
  std::uint64_t elements = 0;         // of the parameters
  std::uint64_t padded_elements = 0;  // of the buffer
  std::uint64_t buckets = 0;
};
// Of parameters in the order of the model. `ranks`: that share its states. Without the distributed optimizer nothing is
// padded.
MegatronBuffer megatron_buffer(const std::vector<std::uint64_t>& parameters, std::uint64_t ranks, bool distributed,
                               const MegatronOptions& options);

EngineTerms megatron_terms(const Catalog& catalog, const Setup& setup, const MegatronOptions& options);

}  // namespace shardplan
