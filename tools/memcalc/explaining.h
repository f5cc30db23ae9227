// Where a plan's bytes are from, tensor by tensor: what the client keeps, and what is live at the peak.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/activations/activity.h"
#include "planner/activations/live_tensors.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

// Of the worst kind of rank.
struct ExplainedClient {
  std::string peak_at;
  // What one micro-batch keeps in each of the rank's chunks of the model, and how many of them are under way at the peak.
  struct Chunk {
    std::vector<SavedByUnit> saved;
    std::uint64_t micro_batches = 1;
  };
  std::vector<Chunk> chunks;
  std::vector<LiveTensors> live;     // empty for ranks of more than kMostReplayedUnits units
  std::vector<ClientTerm> resident;  // what it keeps beside, at the peak: workspaces of libraries and more
  std::string source;                // of what is kept
};

struct Explained {
  Planned planned;
  std::optional<ExplainedClient> client;  // nothing where activations are not counted
};

Explained make_explained(const PlanOptions& options);

}  // namespace shardplan::memcalc
