// Profile torchtitan: the forward of its Llama (torchtitan/models/llama/model.py at commit 9dec370, December 2024) under FSDP2,
// whose weights are gathered in the policy's parameter dtype, and its loss on logits in fp32 (train.py), on PyTorch 2.15.
//
// Recompute: full and every=N are its activation_checkpoint modes "full" and selective with a number (there every N-th block is
// recomputed, the first one that is being the N-th of the rank's part); selective is "op": of a block's products every second output
// is kept, beginning with the first, what attention puts out, and what a reduce-scatter does (parallelisms/parallelize_llama.py,
// _save_list).
//
// Tensor parallelism is apply_tp's, which always shares out the text between layers, too (sequence parallelism), with loss_parallel
// or without. Pipelines are torch.distributed.pipelining's: a stage keeps what it received until its backward has ended, and the
// last one all that the model put out until the next step.
#pragma once

#include <string>
#include <vector>

#include "planner/activations/activity.h"
#include "planner/activations/client.h"
#include "planner/activations/client_term.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan {

// Why the profile cannot compute this; empty where it can.
std::string torchtitan_refuses(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client);

// As run_profile (planner/activations/profiles.h).
void run_torchtitan(autograd::Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                    const ClientSetup& client, std::vector<SavedByUnit>* saved);

// What a rank keeps beside. `held`: all that it has of the model.
std::vector<ClientTerm> torchtitan_client_terms(const Model& model, const Catalog& held, const Setup& setup,
                                                const ClientSetup& client);

}  // namespace shardplan
