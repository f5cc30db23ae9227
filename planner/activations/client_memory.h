// The client's memory beside the engine's: from an activity and what an engine holds to the peak of a rank.
//
// A step's worst moment is one of two. While the model computes, the engine holds what it holds in the backward and the
// client what its forward and backward need; in the update the engine holds what that needs, and the client nothing.
#pragma once

#include "planner/activations/activity.h"
#include "planner/report.h"

namespace shardplan {

// What an engine holds on the device at the two moments, by class; members that are not known count as nothing.
struct EngineHolds {
  PeakMemory computing;
  PeakMemory updating;
  // Its gradients come to be in the backward, tensor by tensor, instead of being there from the start: then they are not
  // in `computing` but follow the activity, as this part of the whole gradients.
  std::optional<double> growing_gradient_share;
};

struct ClientHolds {
  ActivityPeak peak;          // of one micro-batch
  HeldBytes after_forward{};  // likewise
  // Micro-batches whose forward has ended and whose backward has not begun, at the worst moment, besides the one that
  // computes: more than none in a pipeline alone.
  std::uint64_t waiting_micro_batches = 0;
  Bytes workspaces;  // of libraries, all the time
};

ClientHolds holds_of(const Activity& activity);

// Sets allocated_after_step, peak_allocated, peak_at and at_peak of a report that has what the engine holds.
void add_client(DeviceMemory& device, const EngineHolds& engine, const ClientHolds& client);

Bytes sum(const PeakMemory& held);

}  // namespace shardplan
