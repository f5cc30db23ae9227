// The tensors that a rank's client holds at the worst moment of a step, one by one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/activations/client.h"
#include "planner/activations/tape.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan {

// Equal tensors of equal units.
struct LiveTensors {
  std::string unit;  // that made them: "model.layers.*" where units are numbered
  std::uint64_t count = 0;
  std::string module{};     // that made them, below the unit; empty where no parameter took part
  std::string operation{};  // likewise
  Shape shape{};
  DType dtype = DType::f32;
  autograd::Purpose purpose = autograd::Purpose::activation;
  Bytes bytes{};  // of each, rounded up as torch's allocator does
  bool operator==(const LiveTensors&) const = default;
};

// Largest sums first; of the micro-batches under way together. They add up to the client's part of peak_allocated: what
// client_of_rank has as its peak. Empty for ranks of more than kMostReplayedUnits units. Only where client_of_rank knows.
std::vector<LiveTensors> live_at_peak(const Model& model, const Catalog& held, const Setup& setup,
                                      const ClientSetup& client, std::uint64_t stage);

}  // namespace shardplan
