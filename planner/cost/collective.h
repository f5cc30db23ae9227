// What a collective costs: seconds, and bytes on each class of links.
//
// The model is alpha-beta with the bottleneck link (Hockney; Thakur, Rabenseifner and Gropp 2005): steps times latency,
// plus bytes over the rate of the slowest link on the way. Bytes are exact, and each algorithm of a kind sends the same
// number: only how they divide between the links of a node and the network differs. docs/cost_model.md has the formulas
// with their sources.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/bytes.h"
#include "planner/cost/cluster.h"

namespace shardplan {

// N ranks; `shard` below is one rank's part of the buffer.
enum class CollectiveKind : std::uint8_t {
  all_gather,      // every rank ends with all N shards
  reduce_scatter,  // every rank ends with the sum of its shard
  all_reduce,      // every rank ends with the sum of all N shards
  all_to_all,      // every rank sends a shard to each other rank
};
std::string_view name(CollectiveKind kind);

// fastest: of those below, what takes the least time at this size, as NCCL chooses.
// ring: one ring through all ranks, node by node; as many rings as GPUs of a node share the network's adapters.
// tree: all_reduce: up and down a double binary tree of nodes, each a chain (NCCL). all_gather and reduce_scatter:
//   recursive doubling and halving, between nodes and inside them.
// hierarchical: rings of equal places across nodes, and rings inside nodes, one after the other.
// direct: everyone to everyone. The one way to do an all_to_all, and only that.
enum class Algorithm : std::uint8_t { fastest, ring, tree, hierarchical, direct };
std::string_view name(Algorithm algorithm);

// Who takes part: `ranks_per_node` GPUs in each of `nodes` nodes.
struct Group {
  std::uint64_t ranks_per_node = 1;
  std::uint64_t nodes = 1;

  std::uint64_t ranks() const { return ranks_per_node * nodes; }
  bool operator==(const Group&) const = default;
};

// The group of `ranks` ranks that lie `stride` apart: a shard group has stride 1, the replicas of a shard have the shard
// group's size. It is spread evenly over as few nodes as hold it. Throws ConfigError where that is not possible.
Group group_of(std::uint64_t ranks, std::uint64_t stride, std::uint64_t gpus_per_node);

// How many collectives share the links of each class at once: a factor on the bytes' time. Below 1 where the ranks of a
// group have more of an adapter than their shares, because the other GPUs at it are not in the group.
struct Contention {
  double node = 1;
  double network = 1;
  bool operator==(const Contention&) const = default;
};

// Of all ranks of the group together. Its sum is ranks times what one rank sends (Operation::sent).
struct LinkBytes {
  Bytes node;
  Bytes network;

  Bytes sum() const { return node + network; }
  LinkBytes& operator+=(const LinkBytes& other);
  bool operator==(const LinkBytes&) const = default;
};

struct CollectiveCost {
  double seconds = 0;
  Algorithm algorithm = Algorithm::ring;  // what was taken
  LinkBytes sent;
  double byte_seconds = 0;  // of the seconds: bytes move, which others on the same links make slower
  bool operator==(const CollectiveCost&) const = default;
};

// All zero for a group of one rank. Throws ConfigError for an algorithm that the kind does not have, ArithmeticOverflow.
CollectiveCost cost_of(CollectiveKind kind, Bytes shard, const Group& group, const Cluster& cluster,
                       Algorithm algorithm = Algorithm::fastest, const Contention& contention = {});

}  // namespace shardplan
