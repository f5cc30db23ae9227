#include "planner/operation.h"

namespace shardplan {
namespace {

std::uint64_t shifted(std::uint64_t unit, std::int32_t stride, std::uint64_t iteration) {
  return unit + static_cast<std::uint64_t>(stride) * iteration;  // two's complement: a stride of -1 counts down
}

}  // namespace

std::string_view name(OperationKind kind) {
  constexpr std::array<std::string_view, 12> kNames{"gather", "release", "compute", "reduce", "accumulate", "norm",
                                                    "agree",  "update",  "cast",    "fetch",  "evict",      "snapshot"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::string_view name(Pass pass) {
  constexpr std::array<std::string_view, 4> kNames{"", "forward", "recompute", "backward"};
  return kNames[static_cast<std::size_t>(pass)];
}

std::string_view name(ProgramKind kind) {
  constexpr std::array<std::string_view, kPrograms> kNames{"train_micro_batch", "last_micro_batch", "evaluate",
                                                           "update"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::uint64_t operation_count(const Program& program) {
  std::uint64_t count = 0;
  for (const Segment& segment : program.segments) count += segment.count * segment.operations.size();
  return count;
}

Operation expand(const Segment& segment, const Operation& operation, std::uint64_t iteration) {
  Operation result = operation;
  result.unit = shifted(operation.unit, segment.unit_stride, iteration);
  result.step += segment.step_stride * iteration;
  for (auto& dependency : result.waits_for) {
    if (!dependency || dependency->kind == OperationKind::agree) continue;
    dependency->unit = shifted(dependency->unit, segment.unit_stride, iteration);
  }
  return result;
}

}  // namespace shardplan
