// What things cost on a virtual machine, in seconds. Virtual devices and communicators ask; whoever simulates answers
// (planner/cost, by way of tools/): this folder knows no formula.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace shardplan {

enum class VirtualCollective : std::uint8_t { all_gather, reduce_scatter, records, barrier };

// How a communicator's ranks lie on the nodes.
struct GroupShape {
  std::uint64_t ranks = 1;
  std::uint64_t nodes = 1;
  std::uint64_t ranks_per_node = 1;  // on the node that has the most
  bool operator==(const GroupShape&) const = default;
};

struct CollectivePrice {
  double seconds = 0;
  double network_share = 0;  // the part of the bytes that leaves the nodes
};

class Costs {
 public:
  virtual ~Costs() = default;
  // A kernel that reads and writes so many bytes of device memory.
  virtual double memory_seconds(Bytes touched) const = 0;
  // `bytes` of the whole buffer (of all records).
  virtual CollectivePrice collective(VirtualCollective kind, Bytes bytes, const GroupShape& group) const = 0;
};

}  // namespace shardplan
