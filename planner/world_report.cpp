#include "planner/world_report.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

std::optional<Bytes> sum(std::optional<Bytes> a, std::optional<Bytes> b) {
  return a && b ? std::optional(*a + *b) : std::nullopt;
}

void add(DeviceMemory& device, const DeviceMemory& other) {
  device.parameters += other.parameters;
  device.gradients += other.gradients;
  device.optimizer_states += other.optimizer_states;
  if (device.live_peak && other.live_peak && *other.live_peak > *device.live_peak) device.peak_at = other.peak_at;
  for (auto member : {&DeviceMemory::allocated_after_step, &DeviceMemory::peak_allocated, &DeviceMemory::peak_reserved,
                      &DeviceMemory::total, &DeviceMemory::live_peak}) {
    device.*member = sum(device.*member, other.*member);
  }
  for (auto member : {&PeakMemory::parameters, &PeakMemory::gathered_parameters, &PeakMemory::gradients,
                      &PeakMemory::optimizer_states, &PeakMemory::communication_buffers, &PeakMemory::activations,
                      &PeakMemory::loss, &PeakMemory::workspace}) {
    device.at_peak.*member = sum(device.at_peak.*member, other.at_peak.*member);
  }
}

void add(RankReport& rank, const RankReport& other) {
  add(rank.device, other.device);
  for (auto member :
       {&HostMemory::pinned, &HostMemory::pageable, &HostMemory::total, &HostMemory::initialization_peak}) {
    rank.host.*member = sum(rank.host.*member, other.host.*member);
  }
  rank.file = sum(rank.file, other.file);
  if (!rank.arenas || !other.arenas) return;
  for (auto member : {&Arenas::device, &Arenas::pinned, &Arenas::host, &Arenas::file}) {
    (*rank.arenas).*member += (*other.arenas).*member;
  }
}

void add(Traffic& traffic, const Traffic& other) {
  for (auto member : {&Traffic::gather_parameters, &Traffic::gather_gradients, &Traffic::reduce_gradients,
                      &Traffic::reduce_among_replicas, &Traffic::control, &Traffic::textbook}) {
    traffic.*member += other.*member;
  }
}

}  // namespace

Setup expert_setup(const Setup& setup) {
  if (setup.replicate > 1) {
    throw ConfigError("--ep", "", "experts on their own data axis and --replicate exclude each other");
  }
  Setup experts = setup;
  experts.world_size = expert_world_size(setup);
  experts.reduction_group.reset();
  experts.parallel = {};
  return experts;
}

Report with_experts(Report others, const Report& experts) {
  add(others.ranks.front(), experts.ranks.front());
  add(others.traffic, experts.traffic);
  return others;
}

Report world_report(const std::vector<RankKind>& kinds, std::vector<Report> reports) {
  SHARDPLAN_CHECK(!kinds.empty() && kinds.size() == reports.size(), "one report for each kind of rank");
  Report world{.engine = reports.front().engine, .ranks = {}, .traffic = {}, .notes = {}};
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    RankReport& rank = world.ranks.emplace_back(std::move(reports[i].ranks.front()));
    rank.role = kinds[i].role;
    rank.count = kinds[i].count;
    for (std::string& note : reports[i].notes) {
      if (std::find(world.notes.begin(), world.notes.end(), note) == world.notes.end()) {
        world.notes.push_back(std::move(note));
      }
    }
    if (least_device_bytes(rank) > least_device_bytes(world.ranks[world.worst])) world.worst = i;
  }
  world.traffic = reports[world.worst].traffic;
  return world;
}

}  // namespace shardplan
