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
};

struct ClientHolds {
  ActivityPeak peak;                // of all micro-batches under way
  HeldBytes resident_at_peak{};     // what it keeps besides, of libraries among others
  HeldBytes resident_after_step{};  // of that, and else, what is there between steps
};

// Sets allocated_after_step, peak_allocated, peak_at and at_peak of a report that has what the engine holds.
void add_client(DeviceMemory& device, const EngineHolds& engine, const ClientHolds& client);

Bytes sum(const PeakMemory& held);

}  // namespace shardplan
