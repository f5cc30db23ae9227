// What the client of a virtual rank holds on its device beside the optimizer's arenas: the tensors of its forward and
// backward, unit by unit of the plan.
//
// Made from a tape that ran every unit by itself (planner/activations/tape.h), so it knows nothing of the planner's folded
// spans and their peak. Booking it on a device is the second way to the peak of a rank: planned == simulated, difference 0.
//
// Storages that are born in one pass of a unit and die in another are one block. Those that do not outlive the pass they
// are born in count in its highest point. What a recomputation makes is of the backward that it is for, as on the tape.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "planner/activations/client_rank.h"
#include "planner/operation.h"
#include "runtime/device.h"

namespace shardplan {

// One pass of one unit: `highest` over what was held at its begin, while it runs; then some blocks go and others come.
struct ClientPass {
  Bytes highest;
  std::vector<std::uint32_t> freed;  // indices into ClientMemory::blocks
  std::vector<std::uint32_t> held;
};

// A value that all ranks of a kind share.
struct ClientMemory {
  std::vector<Bytes> resident;  // from the first pass on: workspaces of libraries
  std::vector<Bytes> blocks;
  std::vector<ClientPass> forward;  // by unit of the plan
  std::vector<ClientPass> backward;

  // Nothing for Pass::recompute.
  const ClientPass* of(Pass pass, std::uint64_t unit) const;
};

// Of one micro-batch of a rank that holds all of the model, where the profile computes it (activity_of). Without a machine,
// libraries' workspaces are left out.
ClientMemory client_memory(const Model& model, const Setup& setup, const ClientSetup& client,
                           const std::optional<MegatronMachine>& machine);

inline constexpr std::string_view kClientPurpose = "activations";  // of the ranges that it hands out

// Books it for one rank, in allocations of the device. Throws OutOfMemory.
class BookedClient {
 public:
  // Both must outlive it.
  BookedClient(const ClientMemory& memory, Device& device);
  BookedClient(const BookedClient&) = delete;
  BookedClient& operator=(const BookedClient&) = delete;
  ~BookedClient();

  // Around the pass of a unit.
  void begin(Pass pass, std::uint64_t unit);
  void end(Pass pass, std::uint64_t unit);

 private:
  class Allocation;
  std::unique_ptr<Allocation> take(Bytes bytes);

  const ClientMemory& memory_;
  Device& device_;
  std::vector<std::unique_ptr<Allocation>> resident_;
  std::vector<std::unique_ptr<Allocation>> blocks_;
  std::unique_ptr<Allocation> on_the_way_;
};

}  // namespace shardplan
