#include "planner/activations/client_memory.h"

#include <fmt/format.h>

#include <algorithm>

namespace shardplan {
namespace {

using autograd::Purpose;

Bytes held(const HeldBytes& bytes, Purpose purpose) {
  return Bytes{static_cast<std::uint64_t>(std::max<std::int64_t>(bytes[static_cast<std::size_t>(purpose)], 0))};
}

void add(std::optional<Bytes>& sum, Bytes bytes) {
  sum = sum.value_or(Bytes{}) + bytes;
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
  const ActivityPeak& worst = client.peak;
  PeakMemory computing = engine.computing;
  add(computing.activations, held(worst.held, Purpose::activation));
  add(computing.loss, held(worst.held, Purpose::loss));
  add(computing.workspace, held(worst.held, Purpose::workspace) + client.resident_at_peak);
  add(computing.gradients, held(worst.held, Purpose::gradient));
  PeakMemory updating = engine.updating;
  add(updating.workspace, client.resident_after_step);
  add(updating.activations, Bytes{});
  add(updating.loss, Bytes{});

  if (device.allocated_after_step)
    device.allocated_after_step = *device.allocated_after_step + client.resident_after_step;
  const bool in_update = sum(updating) > sum(computing);
  device.at_peak = in_update ? updating : computing;
  device.peak_allocated = sum(device.at_peak);
  device.peak_at = in_update ? "the optimizer's update" : moment(worst);
}

}  // namespace shardplan
