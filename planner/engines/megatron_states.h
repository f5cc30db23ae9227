// Inside engine megatron: masters and moments, wherever they are placed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/engines/options.h"
#include "planner/engines/owned.h"

namespace shardplan {

// Of so many elements; none where the parameter is its own master.
Bytes megatron_master_bytes(const Policy& policy, const MegatronOptions& options, std::uint64_t elements);

// Of a shard of so many elements, and of whole tensors, each in its shape.
Bytes megatron_shard_moments(const Setup& setup, const TensorGroup& group, const MegatronOptions& options,
                             std::uint64_t elements);
Bytes megatron_whole_moments(const Setup& setup, const std::vector<OwnedRun>& runs, const TensorGroup& group,
                             const MegatronOptions& options);

struct MegatronStates {
  Bytes master;
  Bytes moments;
  std::string formula;
  std::string inputs;
  const char* source;
};

// Adds them as terms, the offloaded fraction on the host.
void add_megatron_states(const MegatronStates& states, const MegatronOptions& options, TermList& list);

}  // namespace shardplan
