#include "planner/formats/cluster_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "planner/formats/file.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/json.h"
#include "planner/formats/near_names.h"

namespace shardplan {
namespace data {
extern const std::string_view kClusters;
}
namespace {

// NCCL's hwLat of the Ring/Simple protocol (docs/cost_model.md).
constexpr double kNvlinkLatency = 3.4e-6;
constexpr double kPcieLatency = 5.7e-6;
constexpr double kNetworkLatency = 9.6e-6;
constexpr double kNodeEfficiency = 0.8;
constexpr double kHostEfficiency = 0.79;
constexpr double kNetworkEfficiency = 0.9;
constexpr double kDefaultNetwork = 50e9;  // 400 Gbit/s

void require_known_keys(JsonView object, std::string_view what, std::initializer_list<std::string_view> keys) {
  for (const JsonView member : object.members()) {
    if (std::find(keys.begin(), keys.end(), member.key()) != keys.end()) continue;
    member.fail(fmt::format("is no key of {}: expected one of {}", what, fmt::join(keys, ", ")));
  }
}

bool is_said(JsonView value) {
  return value.exists() && !value.is_null();
}

void read_positive(JsonView value, double& number) {
  if (!is_said(value)) return;
  number = value.as_number();
  if (!(number > 0) || number > 1e30) value.fail_expected("a positive number");
}

void read_from_zero(JsonView value, double& number) {
  if (!is_said(value)) return;
  number = value.as_number();
  if (!(number >= 0) || number > 1e30) value.fail_expected("a number from 0");
}

// Of what a data sheet says: what is more is a mistake.
void read_part(JsonView value, double& part) {
  read_positive(value, part);
  if (part > 1) value.fail_expected("a part of the whole, up to 1");
}

std::string text_if_said(JsonView value) {
  return is_said(value) ? std::string(value.as_string()) : std::string();
}

// 8 GT/s per lane in generation 3, twice that in each later one, 16 lanes, 128 of 130 bits (PCI Express base specs).
double pcie_bytes_per_second(std::uint64_t generation) {
  double bytes = 16 * 8e9 / 8 * 128 / 130;
  for (std::uint64_t g = 3; g < generation && g < 8; ++g) bytes *= 2;
  return bytes;
}

Link node_link_of(const Gpu& gpu) {
  if (gpu.link_bytes_per_second) {
    return {static_cast<double>(*gpu.link_bytes_per_second), kNodeEfficiency, kNvlinkLatency};
  }
  if (gpu.pcie_generation) return {pcie_bytes_per_second(*gpu.pcie_generation), kNodeEfficiency, kPcieLatency};
  return {0, kNodeEfficiency, kPcieLatency};
}

Link host_link_of(const Gpu& gpu) {
  return {gpu.pcie_generation ? pcie_bytes_per_second(*gpu.pcie_generation) : 0, kHostEfficiency, 0};
}

Link default_network() {
  return {kDefaultNetwork, kNetworkEfficiency, kNetworkLatency};
}

void read_link(JsonView object, Link& link) {
  if (!is_said(object)) return;
  require_known_keys(object, "a link", {"bytes_per_second", "efficiency", "latency_seconds"});
  read_positive(object["bytes_per_second"], link.bytes_per_second);
  read_part(object["efficiency"], link.efficiency);
  read_from_zero(object["latency_seconds"], link.latency_seconds);
}

void read_disk(JsonView object, Disk& disk) {
  if (!is_said(object)) return;
  require_known_keys(object, "a disk", {"read_bytes_per_second", "write_bytes_per_second"});
  read_positive(object["read_bytes_per_second"], disk.read_bytes_per_second);
  read_positive(object["write_bytes_per_second"], disk.write_bytes_per_second);
}

void read_efficiency(JsonView object, Efficiency& efficiency) {
  if (!is_said(object)) return;
  require_known_keys(
      object, "efficiency",
      {"matmul", "fp8_matmul", "grouped", "attention_forward", "attention_backward", "memory", "kernel_seconds"});
  read_part(object["matmul"], efficiency.matmul);
  read_part(object["fp8_matmul"], efficiency.fp8_matmul);
  read_part(object["grouped"], efficiency.grouped);
  read_part(object["attention_forward"], efficiency.attention_forward);
  read_part(object["attention_backward"], efficiency.attention_backward);
  read_part(object["memory"], efficiency.memory);
  read_from_zero(object["kernel_seconds"], efficiency.kernel_seconds);
}

const Gpu& gpu_of(JsonView value, const std::vector<Gpu>& gpus) {
  try {
    return find_gpu(gpus, value.as_string());
  } catch (const ConfigError& error) {
    if (error.source() != "--gpu") throw;
    value.fail(error.problem());
  }
}

Cluster read_cluster(JsonView row, const std::vector<Gpu>& gpus) {
  require_known_keys(row, "a cluster",
                     {"name", "aliases", "gpu", "fp8_flops", "gpus_per_node", "gpus_per_adapter", "node", "network",
                      "host", "disk", "collective_seconds", "efficiency", "source", "note"});
  Cluster cluster;
  cluster.name = std::string(row["name"].as_string());
  if (cluster.name.empty()) row["name"].fail("expected a name, found an empty one");
  if (is_said(row["aliases"])) {
    for (const JsonView alias : row["aliases"].elements()) cluster.aliases.emplace_back(alias.as_string());
  }
  cluster.gpu = gpu_of(row["gpu"], gpus);
  if (is_said(row["fp8_flops"])) read_positive(row["fp8_flops"], cluster.fp8_flops.emplace());
  if (is_said(row["gpus_per_node"])) cluster.gpus_per_node = row["gpus_per_node"].as_positive(1'000'000);
  if (is_said(row["gpus_per_adapter"])) {
    cluster.gpus_per_adapter = row["gpus_per_adapter"].as_positive(cluster.gpus_per_node);
  }
  cluster.node = node_link_of(cluster.gpu);
  cluster.network = default_network();
  read_link(row["node"], cluster.node);
  read_link(row["network"], cluster.network);
  cluster.host = host_link_of(cluster.gpu);
  read_link(row["host"], cluster.host);
  read_disk(row["disk"], cluster.disk);
  if (cluster.node.bytes_per_second <= 0) {
    row["gpu"].fail(fmt::format("of {} no link is known: node.bytes_per_second is needed", cluster.gpu.name));
  }
  read_from_zero(row["collective_seconds"], cluster.collective_seconds);
  read_efficiency(row["efficiency"], cluster.efficiency);
  cluster.source = text_if_said(row["source"]);
  cluster.note = text_if_said(row["note"]);
  return cluster;
}

bool is_called(const Cluster& cluster, std::string_view name) {
  return equal_in_any_case(cluster.name, name) ||
         std::any_of(cluster.aliases.begin(), cluster.aliases.end(),
                     [&](const std::string& alias) { return equal_in_any_case(alias, name); });
}

void require_new_names(const Cluster& cluster, const std::vector<Cluster>& table, JsonView row) {
  for (const Cluster& other : table) {
    if (is_called(other, cluster.name)) {
      row["name"].fail(fmt::format("'{}' is the name of {} already", cluster.name, other.name));
    }
    for (const std::string& name : cluster.aliases) {
      if (is_called(other, name)) row["aliases"].fail(fmt::format("'{}' is the name of {} already", name, other.name));
    }
  }
}

}  // namespace

std::vector<Cluster> parse_cluster_table(std::string_view text, const std::string& source,
                                         const std::vector<Gpu>& gpus) {
  const JsonDocument document(text, source);
  const JsonView root = document.root();
  if (root["schema"].as_string() != "shardplan.clusters/1") root["schema"].fail_expected("\"shardplan.clusters/1\"");
  require_known_keys(root, "a table of clusters", {"schema", "clusters"});
  std::vector<Cluster> table;
  for (const JsonView row : root["clusters"].elements()) {
    Cluster cluster = read_cluster(row, gpus);
    require_new_names(cluster, table, row);
    table.push_back(std::move(cluster));
  }
  return table;
}

std::vector<Cluster> cluster_table(const std::vector<Gpu>& gpus) {
  return parse_cluster_table(data::kClusters, "clusters.json", gpus);
}

Cluster require_cluster(const std::string& name_or_file, const std::vector<Gpu>& gpus) {
  if (name_or_file.ends_with(".json")) {
    std::vector<Cluster> table = parse_cluster_table(read_text(name_or_file), name_or_file, gpus);
    if (table.size() != 1) {
      throw ConfigError(name_or_file, "clusters", fmt::format("expected one cluster, found {}", table.size()));
    }
    return std::move(table.front());
  }
  std::vector<std::string> names;
  for (Cluster& cluster : cluster_table(gpus)) {
    if (is_called(cluster, name_or_file)) return std::move(cluster);
    names.push_back(cluster.name);
    names.insert(names.end(), cluster.aliases.begin(), cluster.aliases.end());
  }
  throw ConfigError("--cluster", "",
                    fmt::format("'{}' is no known cluster: the nearest are {}; a file that ends in .json works too",
                                name_or_file, fmt::join(near_names(name_or_file, names), ", ")));
}

Cluster cluster_for(const Gpu& gpu, const std::vector<Gpu>& gpus) {
  for (Cluster& cluster : cluster_table(gpus)) {
    if (cluster.gpu == gpu) return std::move(cluster);
  }
  Cluster cluster;
  cluster.name = gpu.name;
  cluster.gpu = gpu;
  cluster.node = node_link_of(gpu);
  cluster.network = default_network();
  cluster.host = host_link_of(gpu);
  if (cluster.node.bytes_per_second <= 0) {
    throw ConfigError("--cluster", "", fmt::format("is needed: of {} no link is known", gpu.name));
  }
  cluster.note = fmt::format("no cluster of {} is known: nodes of {} GPUs with 400 Gbit/s each are assumed", gpu.name,
                             cluster.gpus_per_node);
  return cluster;
}

}  // namespace shardplan
