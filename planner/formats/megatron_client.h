// What Megatron-LM's arguments say of the client: how activations are computed (planner/activations/megatron_client.h), with
// the rules of training/arguments.py, d98e8a64.
#pragma once

#include <optional>

#include "planner/activations/client.h"
#include "planner/families/megatron.h"
#include "planner/formats/json.h"
#include "planner/formats/megatron_arguments.h"

namespace shardplan {

// Micro-batch and sequence included. Of the environment NVTE_ALLOW_NONDETERMINISTIC_ALGO is read. Throws ConfigError.
ClientSetup read_megatron_client(MegatronArguments& arguments, const std::optional<JsonView>& environment,
                                 const MegatronSizes& sizes);

}  // namespace shardplan
