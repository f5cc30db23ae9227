#include "planner/cost/host.h"

#include <fmt/format.h>

#include "base/error.h"
#include "planner/cost/compute.h"

namespace shardplan {
namespace {

// What streams through a server's memory reach of the data sheet: STREAM, 0.81 to 0.86 on two-socket servers with eight
// channels each (docs/cost_model.md).
constexpr double kMemoryEfficiency = 0.8;

}  // namespace

double host_copy_seconds(Bytes bytes, const Cluster& cluster) {
  if (cluster.host.bytes_per_second <= 0) {
    throw ConfigError("--cluster", "", fmt::format("the link of {} to its host is not known", cluster.gpu.name));
  }
  return static_cast<double>(bytes.count()) / cluster.host.rate() + cluster.host.latency_seconds;
}

double host_update_seconds(std::uint64_t elements, const Policy& policy, OptimizerKind optimizer,
                           const Cluster& cluster) {
  if (!cluster.host_memory_bytes_per_second) {
    throw ConfigError("--cluster", "",
                      fmt::format("how fast the host's memory is in nodes of {} is not known "
                                  "(host_memory_bytes_per_second)",
                                  cluster.name));
  }
  const double share =
      *cluster.host_memory_bytes_per_second * kMemoryEfficiency / static_cast<double>(cluster.gpus_per_node);
  return static_cast<double>(elements) * update_bytes(policy, optimizer) / share;
}

}  // namespace shardplan
