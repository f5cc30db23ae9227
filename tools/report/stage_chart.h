// The picture of the ZeRO paper (Rajbhandari et al., SC20, figure 1), from any source: for each stage the memory of a
// GPU by class, and beside it what that costs: bytes sent, and the time of a step.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tools/report/memory_classes.h"

namespace shardplan::report {

struct StageBar {
  std::string label{};     // "stage 3"
  std::string note{};      // under the label: "DDP"; may be empty
  MemoryByClass memory{};  // of one GPU, at its peak
  Bytes sent{};            // by one GPU in one step
  double compute_seconds = 0;
  double exposed_seconds = 0;  // communication that no computation hides
  double waiting_seconds = 0;  // for slower ranks and anything else; the step takes the sum of the three
};

struct StageChart {
  std::string title{};
  std::string subtitle{};           // may be empty
  std::vector<StageBar> bars{};     // from top to bottom
  std::optional<Bytes> capacity{};  // of the GPU: a dashed line; bars beyond it are said to be too much
};

// SVG, 900 pixels wide, as high as it has bars. Throws CheckFailure where a time is negative or no number.
std::string stage_chart(const StageChart& chart);

}  // namespace shardplan::report
