// A cluster: equal nodes of equal GPUs, and the links between them. A plain value, which planner/formats/cluster_table.h
// reads and lists.
//
// Two classes of links. Inside a node every GPU reaches every other at the same speed (a switch, as NVSwitch is, or a
// mesh, whose links a ring uses all at once). Between nodes every GPU injects into a network that is no bottleneck
// itself (a fat tree), through an adapter of its own or one that several GPUs share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/gpu.h"

namespace shardplan {

enum class LinkClass : std::uint8_t { node, network };

struct Link {
  double bytes_per_second = 0;  // of one GPU, one direction, as the data sheet says
  double efficiency = 1;        // the part of it that large collectives reach
  double latency_seconds = 0;   // of one step of a collective

  double rate() const { return bytes_per_second * efficiency; }
  bool operator==(const Link&) const = default;
};

// What one GPU has of its node's disks, reading and writing at the same time.
struct Disk {
  double read_bytes_per_second = 6.5e9;
  double write_bytes_per_second = 3.5e9;
  bool operator==(const Disk&) const = default;
};

// What real kernels reach of the data sheet. docs/cost_model.md says where the defaults are from.
struct Efficiency {
  double matmul = 0.60;      // of the dtype's peak, large products at the shapes of training
  double fp8_matmul = 0.57;  // the same in 8 bit
  double grouped = 0.8;      // of that: the products of a mixture's experts, which one kernel computes together
  // Of the matmul rate: fused attention, forward and backward.
  double attention_forward = 0.83;
  double attention_backward = 0.70;
  double memory = 0.90;           // of the memory's bandwidth
  double kernel_seconds = 10e-6;  // that a kernel costs besides its work, whatever its size
  bool operator==(const Efficiency&) const = default;
};

struct Cluster {
  std::string name;                  // "h100"
  std::vector<std::string> aliases;  // "dgx-h100"
  Gpu gpu;
  // The GPU table does not have it.
  std::optional<double> fp8_flops;
  std::uint64_t gpus_per_node = 8;
  // Neighbours that share an adapter: `network` is one GPU's share of it, and one of them alone has all of it.
  std::uint64_t gpus_per_adapter = 1;
  Link node;
  Link network;
  Link host;  // between a GPU and its node's memory, each way at the same time; no latency of its own
  Disk disk;
  double collective_seconds = 20e-6;  // that a collective costs before its first step
  Efficiency efficiency;
  std::string source;
  std::string note;

  const Link& link(LinkClass link_class) const { return link_class == LinkClass::node ? node : network; }
  bool operator==(const Cluster&) const = default;
};

}  // namespace shardplan
