// What the host costs: copies between it and a GPU, and an optimizer that updates what it keeps.
//
// A copy takes as long as its bytes at the GPU's link to the host. The update is bound by the host's memory, which the GPUs of
// a node share out evenly (ZeRO-Offload, Ren et al., arXiv 2101.06840, sec. 4: its Adam is vectorised and parallel until
// memory is what limits it). docs/cost_model.md, 'The host', says where the rates are from.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "planner/cost/cluster.h"
#include "planner/policy.h"

namespace shardplan {

// Between pinned memory and the GPU, one direction. Throws ConfigError where the link is not known.
double host_copy_seconds(Bytes bytes, const Cluster& cluster);

// One pass over a rank's part of the states, all ranks of its node at once. Throws ConfigError where the bandwidth of the
// node's memory is not known.
double host_update_seconds(std::uint64_t elements, const Policy& policy, OptimizerKind optimizer,
                           const Cluster& cluster);

}  // namespace shardplan
