// What things cost on a virtual machine, in seconds. Virtual devices and communicators ask; whoever simulates answers
// (planner/cost, by way of tools/): this folder knows no formula.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace shardplan {

enum class VirtualCollective : std::uint8_t { all_gather, reduce_scatter, records, barrier };

// How a communicator's ranks lie on the nodes and on the adapters that join nodes to the network.
struct GroupShape {
  std::uint64_t ranks = 1;
  std::uint64_t nodes = 1;
  std::uint64_t ranks_per_node = 1;     // on the node that has the most
  std::uint64_t ranks_per_adapter = 1;  // on the adapter that has the most
  bool operator==(const GroupShape&) const = default;
};

// Of a collective that has its links for itself; what shares them makes its bytes slower, in proportion.
struct CollectivePrice {
  double seconds = 0;
  double start_seconds = 0;  // of these, before its bytes move
  double network_share = 0;  // the part of the bytes that leaves the nodes
  // How much of a link its bytes take while they move, 1 being all of it: of each rank's link inside its node, and of
  // each of its adapters.
  double node_use = 0;
  double network_use = 0;
};

class Costs {
 public:
  virtual ~Costs() = default;
  // A kernel that reads and writes so many bytes of device memory.
  virtual double memory_seconds(Bytes touched) const = 0;
  // Bytes that cross the link between a device and its host memory, to the device and from it, at the same time.
  virtual double host_link_seconds(Bytes in, Bytes out) const = 0;
  // `bytes` of the whole buffer (of all records).
  virtual CollectivePrice collective(VirtualCollective kind, Bytes bytes, const GroupShape& group) const = 0;
};

}  // namespace shardplan
