// The picture of one rank's memory over one step: stacked areas by class, the peak marked.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tools/report/memory_classes.h"

namespace shardplan::report {

// What is held from this moment to the next sample's, or to the end of the step.
struct MemorySample {
  double seconds = 0;
  MemoryByClass bytes{};
};

// A stretch of the step to name under the chart: "forward".
struct MemoryPhase {
  std::string name{};
  double begin = 0;
  double end = 0;
};

struct MemoryChart {
  std::string title{};                  // "Llama-2-7B, ZeRO stage 3 on 8 GPUs"
  std::string subtitle{};               // may be empty
  std::vector<MemorySample> samples{};  // in order of time, from 0 on; may be empty
  double end_seconds = 0;               // the end of the step
  std::string peak_at{};                // what happens at the peak: "backward of model.layers.30"; may be empty
  // Of the GPU: a dashed line, unless it is so far above the peak that the areas would be too low to read.
  std::optional<Bytes> capacity{};
  std::vector<MemoryPhase> phases{};  // in order, not overlapping; may be empty
};

// SVG, 900 pixels wide; at most some 100 kB, however many samples: where several fall on one pixel the greatest is
// drawn, so that the peak is seen however short. Throws CheckFailure where times are negative or out of order.
std::string memory_chart(const MemoryChart& chart);

}  // namespace shardplan::report
