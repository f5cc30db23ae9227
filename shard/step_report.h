// What one optimizer step did.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace shardplan {

// Parameter groups: as many as one agreement record of 64 bytes has room for.
inline constexpr std::size_t kMostGroups = 6;

struct StepReport {
  std::uint64_t step = 0;                         // steps applied so far, this one included
  bool skipped = false;                           // a gradient was not finite: nothing changed but the loss scale
  double norm = 0;                                // of the unscaled gradients, before clipping; not finite if skipped
  std::array<double, kMostGroups> group_norms{};  // of each parameter group; 0 beyond the last one
  double clip_factor = 1;
  double loss_scale = 1;             // that the step's losses were multiplied by
  double next_loss_scale = 1;        // for the next one
  Bytes sent;                        // payload, by the plan, since the last step
  double communication_seconds = 0;  // of this rank, since the last step: gathers, reductions, agreement
  double update_seconds = 0;         // norm and update
};

}  // namespace shardplan
