#include "tools/memcalc/comparing.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "tools/memcalc/evaluator.h"
#include "tools/memcalc/simulating.h"

namespace shardplan::memcalc {
namespace {

std::vector<ComparedBytes> lines_of(const Report& here, const Report& there) {
  std::vector<ComparedBytes> lines;
  const DeviceMemory& a = here.ranks[here.worst].device;
  const DeviceMemory& b = there.ranks[there.worst].device;
  for (const auto& [name, member] : {std::pair{"parameters", &PeakMemory::parameters},
                                     {"gathered_parameters", &PeakMemory::gathered_parameters},
                                     {"gradients", &PeakMemory::gradients},
                                     {"optimizer_states", &PeakMemory::optimizer_states},
                                     {"communication_buffers", &PeakMemory::communication_buffers},
                                     {"activations", &PeakMemory::activations},
                                     {"loss", &PeakMemory::loss},
                                     {"workspace", &PeakMemory::workspace}}) {
    lines.push_back({"at_peak", name, a.at_peak.*member, b.at_peak.*member});
  }
  for (const auto& [name, member] : {std::pair{"parameters", &DeviceMemory::parameters},
                                     {"gradients", &DeviceMemory::gradients},
                                     {"optimizer_states", &DeviceMemory::optimizer_states}}) {
    lines.push_back({"resident", name, a.*member, b.*member});
  }
  lines.push_back({"resident", "model_states", a.model_states(), b.model_states()});
  for (const auto& [name, member] : {std::pair{"allocated_after_step", &DeviceMemory::allocated_after_step},
                                     {"peak_allocated", &DeviceMemory::peak_allocated},
                                     {"peak_reserved", &DeviceMemory::peak_reserved},
                                     {"context", &DeviceMemory::context},
                                     {"total", &DeviceMemory::total}}) {
    lines.push_back({"device", name, a.*member, b.*member});
  }
  for (const auto& [name, member] : {std::pair{"gather_parameters", &Traffic::gather_parameters},
                                     {"gather_gradients", &Traffic::gather_gradients},
                                     {"reduce_gradients", &Traffic::reduce_gradients},
                                     {"reduce_among_replicas", &Traffic::reduce_among_replicas}}) {
    lines.push_back({"communication", name, here.traffic.*member, there.traffic.*member});
  }
  lines.push_back({"communication", "bytes_sent_per_step", here.traffic.total(), there.traffic.total()});
  return lines;
}

// Nothing where the model's products or the GPU's speed are not known; a note says why.
std::optional<double> seconds_of(const PlanOptions& options, std::vector<std::string>& notes) {
  if (!options.sequence || options.parameters) return std::nullopt;
  try {
    std::vector<std::string> of_cluster;
    const Cluster cluster = choose_cluster(options, std::nullopt, of_cluster);
    const double seconds = Evaluator(read_planned_model(options), cluster).time(options).seconds();
    for (std::string& note : of_cluster) {
      if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(std::move(note));
    }
    return seconds;
  } catch (const ConfigError& error) {
    notes.push_back(fmt::format("no time of a step: {}", error.what()));
    return std::nullopt;
  }
}

}  // namespace

Comparison compare(const PlanOptions& options, const Planned& here, std::string flags, PlanOptions there) {
  Comparison comparison{.flags = std::move(flags), .options = std::move(there), .planned = {}, .lines = {}};
  comparison.planned = make_planned(comparison.options);
  comparison.lines = lines_of(here.report, comparison.planned.report);
  comparison.seconds_here = seconds_of(options, comparison.notes);
  comparison.seconds_there = seconds_of(comparison.options, comparison.notes);
  return comparison;
}

}  // namespace shardplan::memcalc
