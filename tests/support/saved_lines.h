// What a forward keeps, tensor by tensor, for the message of a test.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>

#include "planner/activations/activity.h"

namespace shardplan::test_support {

inline std::string listed(const Activity& activity) {
  std::string lines;
  for (const SavedByUnit& unit : activity.saved) {
    lines += fmt::format("{} x{} {}\n", unit.unit, unit.times, unit.bytes.count());
    for (const SavedTensor& tensor : unit.tensors) {
      lines += fmt::format("    {} [{}] {} {}\n", tensor.operation, fmt::join(tensor.shape, ", "), name(tensor.dtype),
                           tensor.bytes.count());
    }
  }
  return lines;
}

}  // namespace shardplan::test_support
