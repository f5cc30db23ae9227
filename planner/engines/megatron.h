// Megatron-LM (core/distributed/param_and_grad_buffer.py, core/optimizer/): parameters and gradients in contiguous buffers.
//
//   no distributed optimizer   2 + 4 + 12 bytes per parameter with bf16, no padding
//   distributed optimizer      6 + 12/N: parameters and main gradients stay whole, in buffers whose parameters start at
//                              multiples of 64 elements and whose buckets end at multiples of lcm(N, 128[, 65536]);
//                              parameters go in from the last to the first
//   its FSDP                   per unit; optim, optim_grads and optim_grads_params shard what they say
//
// Optimizers (training/arguments.py, --optimizer): adam, sgd, lion, and muon with whole matrices: without the distributed
// optimizer every rank updates all of them; with it the layer-wise one shares them out (planner/engines/layer_wise.h) and
// the rest goes to a distributed optimizer of its own, in a buffer of its own. Momentum is fp32, as main parameters are.
// Adafactor, 8-bit Adam and Muon in fp16 or under its FSDP do not exist there.
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

// Throws ConfigError for what Megatron-LM refuses.
EngineTerms megatron_terms(const Catalog& catalog, const Setup& setup, const MegatronOptions& options);

}  // namespace shardplan
