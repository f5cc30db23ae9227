// Megatron-LM: the forward of one rank's part of a model on a tape, and what a rank keeps beside activations.
//
// Works on every transformer whose layers are attention and MLP or experts (planner/activations/megatron/sizes.h), from
// Megatron's own arguments or from any other file: Megatron computes Llama as its Llama scripts set it up.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "planner/activations/activity.h"
#include "planner/activations/client.h"
#include "planner/activations/client_term.h"
#include "planner/activations/megatron/megatron_ops.h"
#include "planner/engines/workspaces.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan {

// Why this profile cannot compute the model; empty where it can.
std::string megatron_refuses(const Model& model, const Catalog& held);

// Runs forward and backward of one micro-batch over everything that `held` has: a stage of a pipeline, or one of its
// pieces (planner/activations/pipeline.h). `saved` is filled between the two, if given.
autograd::MegatronUse run_megatron(autograd::Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                                   const ClientSetup& client, std::vector<SavedByUnit>* saved = nullptr);

// The GPU and what is set in the environment of a run.
struct MegatronMachine {
  GpuGeneration generation = GpuGeneration::hopper;
  std::string cublas_workspace_config;  // CUBLAS_WORKSPACE_CONFIG
};

// `held`: all that a rank has. Without a machine, libraries' workspaces are left out. None of 0 bytes.
std::vector<ClientTerm> megatron_client_terms(const Model& model, const Catalog& held, const Setup& setup,
                                              const ClientSetup& client, const std::optional<MegatronMachine>& machine);

}  // namespace shardplan
