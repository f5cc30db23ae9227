// Tables of clusters: the one compiled in (planner/data/clusters.json) and the user's own, in the same format:
//
//   {"schema": "shardplan.clusters/1",
//    "clusters": [{"name": "my-cluster", "gpu": "h100-80gb",
//                  "network": {"bytes_per_second": 25e9}}, ...]}
//
// Required: name; gpu, a name of the GPU table. Optional, null or absent for the default: aliases, gpus_per_node (8),
// gpus_per_adapter (1), fp8_flops (dense), collective_seconds, source, note; node, network and host, each {bytes_per_second (per
// GPU, one direction), efficiency, latency_seconds}; disk {read_bytes_per_second, write_bytes_per_second} (per GPU); efficiency {matmul, fp8_matmul, grouped, attention_forward,
// attention_backward, memory, kernel_seconds} (planner/cost/cluster.h). A node's links default to the GPU's own, or to
// its PCIe generation; its link to host memory to the latter; a network to 400 Gbit/s per GPU; disks to one data centre drive per GPU
// (docs/cost_model.md). Another key is an error.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/cost/cluster.h"

namespace shardplan {

// What is assumed where nothing is asked for.
inline constexpr std::string_view kDefaultCluster = "h100";

// `source` names the text in errors; `gpus` is where GPUs are looked up. Throws ConfigError.
std::vector<Cluster> parse_cluster_table(std::string_view text, const std::string& source,
                                         const std::vector<Gpu>& gpus);

// The table compiled in.
std::vector<Cluster> cluster_table(const std::vector<Gpu>& gpus);

// A file that ends in ".json" and holds one cluster, or a cluster of the table by name or alias, in either case. Throws
// ConfigError that lists near names, and IoError.
Cluster require_cluster(const std::string& name_or_file, const std::vector<Gpu>& gpus);

// The first cluster of the table with this GPU; else nodes of 8 with all defaults, which its note says. Throws
// ConfigError for a GPU of which no link is known.
Cluster cluster_for(const Gpu& gpu, const std::vector<Gpu>& gpus);

}  // namespace shardplan
