#include "planner/activations/client_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace shardplan {
namespace {

using autograd::Purpose;

Bytes held(const HeldBytes& bytes, Purpose purpose) {
  return Bytes{static_cast<std::uint64_t>(std::max<std::int64_t>(bytes[static_cast<std::size_t>(purpose)], 0))};
}

void add(PeakMemory& sum, const HeldBytes& bytes) {
  for (const auto& [part, purpose] :
       {std::pair{&PeakMemory::activations, Purpose::activation}, std::pair{&PeakMemory::loss, Purpose::loss},
        std::pair{&PeakMemory::gradients, Purpose::gradient}, std::pair{&PeakMemory::workspace, Purpose::workspace}}) {
    sum.*part = (sum.*part).value_or(Bytes{}) + held(bytes, purpose);
  }
}

// "backward of model.layers.31"
std::string moment(const ActivityPeak& peak) {
  const std::string_view pass = peak.pass == autograd::Pass::forward ? "forward" : "backward";
  return fmt::format("{} of {}", pass, peak.unit);
}

}  // namespace

Bytes sum(const PeakMemory& held) {
  Bytes bytes;
  for (const std::optional<Bytes>& part :
       {held.parameters, held.gathered_parameters, held.gradients, held.optimizer_states, held.communication_buffers,
        held.activations, held.loss, held.workspace}) {
    bytes += part.value_or(Bytes{});
  }
  return bytes;
}

void add_client(DeviceMemory& device, const EngineHolds& engine, const ClientHolds& client) {
  PeakMemory computing = engine.computing;
  add(computing, client.peak.held);
  add(computing, client.resident_at_peak);
  PeakMemory updating = engine.updating;
  add(updating, client.resident_after_step);

  if (device.allocated_after_step) {
    const auto kept = static_cast<std::uint64_t>(sum(client.resident_after_step));
    device.allocated_after_step = *device.allocated_after_step + Bytes{kept};
  }
  const bool in_update = sum(updating) > sum(computing);
  device.at_peak = in_update ? updating : computing;
  device.peak_allocated = sum(device.at_peak);
  device.peak_at = in_update ? "the optimizer's update" : moment(client.peak);
}

}  // namespace shardplan
