// Fetch and evict: units on their way from host memory or a file and back. See zero_optimizer.h and passing_units.h.
#include <optional>

#include "planner/passage.h"
#include "shard/zero_optimizer.h"

namespace shardplan {
namespace {

// The next unit of the program that comes from the file, after the operation that `cursor` is at.
std::optional<std::uint64_t> next_to_fetch(const StepPlan& plan, ProgramCursor cursor, Subject subject) {
  const MemoryClass memory_class = subject == Subject::parameter ? MemoryClass::parameters : MemoryClass::gradients;
  for (cursor.advance(); !cursor.done(); cursor.advance()) {
    const Operation operation = cursor.operation();
    if (operation.kind == OperationKind::agree) return std::nullopt;
    if (operation.kind != OperationKind::fetch || operation.subject != subject) continue;
    if (in_file(plan, memory_class, operation.unit)) return operation.unit;
  }
  return std::nullopt;
}

void take_and_read_ahead(PassingUnits& units, std::uint64_t unit, std::optional<std::uint64_t> next, UnitPart part,
                         std::uint64_t step) {
  units.take(unit, part, step);
  if (next) units.read_ahead(*next, part, step);
}

}  // namespace

void ZeroOptimizer::fetch(const Operation& operation, bool first_micro_batch) {
  const std::uint64_t unit = operation.unit;
  if (operation.subject == Subject::gradient) {
    if (first_micro_batch || !passing_gradients_) return;  // there are no sums yet
    take_and_read_ahead(*passing_gradients_, unit, next_to_fetch(plan_, cursor_, Subject::gradient), UnitPart::sums,
                        gradient_number_ - 1);
    return;
  }
  if (passing_parameters_ && passing_parameters_->has(unit)) {
    take_and_read_ahead(*passing_parameters_, unit, next_to_fetch(plan_, cursor_, Subject::parameter), UnitPart::all,
                        steps_applied_);
  }
  if (parameters_sharded(plan_)) return;  // a gather takes it on
  const std::size_t run = run_index_of_unit(plan_.layout, unit);
  memory_.acquire(BufferRole::gathered_parameter, operation.step, unit, UINT64_MAX);
  for (std::size_t i = 0; i < plan_.layout.runs[run].unit.buffers.size(); ++i) {
    const Bytes bytes =
        bytes_for(plan_.buffers[run][i].policy.parameter, plan_.layout.runs[run].unit.buffers[i].padded_elements);
    events_.communication().copy(memory_.data(memory_.slot(BufferRole::gathered_parameter, unit, i)),
                                 memory_.data(memory_.resident(BufferRole::parameter, unit, i)), bytes);
  }
  used_parameters(unit);
}

void ZeroOptimizer::used_parameters(std::uint64_t unit) {
  if (passing_parameters_ && passing_parameters_->has(unit)) passing_parameters_->used(unit, events_.communication());
}

void ZeroOptimizer::hold_gradient(std::uint64_t unit) {
  if (!passing_gradients_ || !passing_gradients_->has(unit)) return;
  passing_gradients_->take(unit, UnitPart::none, std::nullopt);
}

void ZeroOptimizer::evict(const Operation& operation, bool last_micro_batch) {
  Stream& stream = events_.stream_of(operation);
  if (operation.subject == Subject::gradient && passing_gradients_) {
    passing_gradients_->put(operation.unit, last_micro_batch ? UnitPart::gradients : UnitPart::sums, gradient_number_,
                            stream);
  } else if (operation.subject == Subject::parameter && passing_parameters_) {
    passing_parameters_->put(operation.unit, UnitPart::trainable, commit_->report.step, stream);
  }
  // Blocks of optimizer states are put as they are updated.
}

void ZeroOptimizer::fetch_gradient(const Operation& operation, const ProgramCursor& cursor) {
  if (!passing_gradients_) return;
  take_and_read_ahead(*passing_gradients_, operation.unit, next_to_fetch(plan_, cursor, Subject::gradient),
                      UnitPart::gradients, gradient_number_);
}

void ZeroOptimizer::fetch_for_update(const Operation& operation, const ProgramCursor& cursor) {
  if (operation.subject == Subject::gradient) return fetch_gradient(operation, cursor);
  // Optimizer states come block by block, as they are updated.
  if (operation.subject != Subject::parameter || !passing_parameters_) return;
  const std::uint64_t unit = operation.unit;
  take_and_read_ahead(*passing_parameters_, unit, next_to_fetch(plan_, cursor, Subject::parameter), UnitPart::in_place,
                      commit_->report.step - 1);
  if (passing_parameters_->whole(unit)) return;
  // An update of a master writes its parameter's tensors, and not what is between them.
  const std::size_t run = run_index_of_unit(plan_.layout, unit);
  for (std::size_t b = 0; b < plan_.buffers[run].size(); ++b) {
    const BufferPlan& buffer = plan_.buffers[run][b];
    if (!buffer.trainable || !buffer.policy.master) continue;
    const Bytes bytes = passing_place(plan_, BufferRole::parameter, unit, b).bytes;
    events_.compute().zero(memory_.data(memory_.resident(BufferRole::parameter, unit, b)), bytes);
  }
}

}  // namespace shardplan
