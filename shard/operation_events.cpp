#include "shard/operation_events.h"

namespace shardplan {
namespace {

constexpr std::size_t kPasses = 4;
constexpr std::size_t kKinds = static_cast<std::size_t>(OperationKind::snapshot) + 1;

}  // namespace

OperationEvents::OperationEvents(const StepPlan& plan, Device& device)
    : units_(plan.layout.units),
      compute_(device.make_stream()),
      communication_(device.make_stream()),
      compute_end_(device.make_event()),
      communication_end_(device.make_event()),
      events_(kKinds * kPasses * units_) {
  for (const Program& program : plan.programs) {
    for_each_operation(program, [&](const Operation& operation) {
      for (const auto& dependency : operation.waits_for) {
        if (!dependency) continue;
        auto& event = events_[index_of(dependency->kind, dependency->pass, dependency->unit)];
        if (!event) event = device.make_event();
      }
    });
  }
}

std::size_t OperationEvents::index_of(OperationKind kind, Pass pass, std::uint64_t unit) const {
  return (static_cast<std::size_t>(kind) * kPasses + static_cast<std::size_t>(pass)) * units_ + unit;
}

Stream& OperationEvents::stream_of(const Operation& operation) {
  switch (operation.kind) {
    case OperationKind::gather:
    case OperationKind::reduce:
    case OperationKind::agree:
      return *communication_;
    case OperationKind::fetch:
    case OperationKind::evict:
      return operation.subject == Subject::optimizer_states ? *compute_ : *communication_;
    default:
      return *compute_;
  }
}

void OperationEvents::before(const Operation& operation) {
  for (const auto& dependency : operation.waits_for) {
    if (!dependency) continue;
    stream_of(operation).wait(*events_[index_of(dependency->kind, dependency->pass, dependency->unit)]);
  }
}

void OperationEvents::after(const Operation& operation) {
  // Who waits for a unit's fetch waits for its parameters.
  if (operation.kind == OperationKind::fetch && operation.subject != Subject::parameter) return;
  const auto& event = events_[index_of(operation.kind, operation.pass, operation.unit)];
  if (event) stream_of(operation).record(*event);
}

void OperationEvents::join() {
  compute_->record(*compute_end_);
  communication_->record(*communication_end_);
  compute_->wait(*communication_end_);
  communication_->wait(*compute_end_);
}

}  // namespace shardplan
