#include "planner/programs.h"

#include <algorithm>
#include <utility>

#include "planner/passage.h"

namespace shardplan {
namespace {

// What one rank sends for one unit of a run.
struct UnitTraffic {
  Bytes gather_parameter;  // all of the unit's, frozen ones too
  Bytes gather_updated;    // what an update changes: trainable ones
  Bytes gather_gradient;
  Bytes reduce_in_group;
  Bytes reduce_among_replicas;
  bool trainable = false;
  bool gradient_slot = false;
};

// Closed forms over padded buffers, N = shards, R = replicas, S = padded / N elements:
//   gather: own shard to N-1 ranks; reduce: N-1 shards to their owners;
//   replicas: all of S but the own part to the part's owners, then the own part's sum to R-1 others.
UnitTraffic traffic_of(const StepPlan& plan, std::size_t run) {
  UnitTraffic traffic;
  const std::uint64_t peers = plan.layout.shards - 1;
  const std::uint64_t replicas = plan.layout.replicas;
  const UnitLayout& unit = plan.layout.runs[run].unit;
  for (std::size_t i = 0; i < unit.buffers.size(); ++i) {
    const BufferLayout& buffer = unit.buffers[i];
    const BufferPlan& use = plan.buffers[run][i];
    traffic.gather_parameter += peers * bytes_for(use.policy.parameter, buffer.shard_elements);
    if (!use.trainable) continue;
    traffic.trainable = true;
    traffic.gather_updated += peers * bytes_for(use.policy.parameter, buffer.shard_elements);
    traffic.gradient_slot |= !use.contribution_in_gradient;
    traffic.gather_gradient += peers * bytes_for(use.policy.gradient, buffer.shard_elements);
    traffic.reduce_in_group += peers * bytes_for(use.policy.wire, buffer.shard_elements);
    if (replicas > 1) {
      const std::uint64_t own = replica_range(buffer, 0, replicas).size();
      traffic.reduce_among_replicas +=
          bytes_for(DType::f32, checked_add(buffer.shard_elements - own, checked_multiply(own, replicas - 1)));
    }
  }
  return traffic;
}

// Appends segments; equal patterns in a row become one.
class SegmentList {
 public:
  explicit SegmentList(Program& program) : segments_(program.segments) {}

  void append(Segment segment) {
    if (!segments_.empty() && continues(segments_.back(), segment)) {
      segments_.back().count += segment.count;
    } else {
      segments_.push_back(std::move(segment));
    }
  }

 private:
  static bool continues(const Segment& previous, const Segment& next) {
    if (previous.unit_stride != next.unit_stride || previous.step_stride != next.step_stride) return false;
    if (previous.operations.size() != next.operations.size()) return false;
    for (std::size_t i = 0; i < next.operations.size(); ++i) {
      if (expand(previous, previous.operations[i], previous.count) != next.operations[i]) return false;
    }
    return true;
  }

  std::vector<Segment>& segments_;
};

class ProgramBuilder {
 public:
  ProgramBuilder(const StepPlan& plan, const Schedule& schedule) : plan_(plan), schedule_(schedule) {
    for (std::size_t run = 0; run < plan.layout.runs.size(); ++run) traffic_.push_back(traffic_of(plan, run));
    gathers_ = parameters_in_slots(plan);
    arrival_ = parameters_sharded(plan) ? OperationKind::gather : OperationKind::fetch;
    overlapped_ = plan.setup.prefetch > 0;
  }

  // Forward steps up to `steps`, backward beyond the units.
  Program micro_batch(ProgramKind kind, std::uint64_t steps) const {
    Program program;
    SegmentList segments(program);
    for (std::uint64_t step = 0; step < steps;) {
      const std::uint64_t count = schedule_.regular_steps(step);
      segments.append(
          {.count = count, .unit_stride = step < schedule_.units() ? 1 : -1, .operations = operations_of(step, kind)});
      step += count;
    }
    return program;
  }

  Program update() const {
    Program program;
    SegmentList segments(program);
    for_each_trainable_part([&](std::uint64_t first, std::uint64_t count, const UnitTraffic&) {
      std::vector<Operation> operations;
      if (passes(MemoryClass::gradients, first))
        operations.push_back(passage(OperationKind::fetch, Subject::gradient, first));
      operations.push_back(on(OperationKind::norm, first));
      segments.append({.count = count, .unit_stride = 1, .step_stride = 0, .operations = operations});
    });
    Operation agree = on(OperationKind::agree, 0);
    if (const auto last = last_trainable_unit())
      agree.waits_for[0] = Dependency{OperationKind::norm, Pass::none, *last};
    segments.append({.count = 1, .unit_stride = 0, .step_stride = 0, .operations = {agree}});
    for_each_trainable_part([&](std::uint64_t first, std::uint64_t count, const UnitTraffic& traffic) {
      segments.append(
          {.count = count, .unit_stride = 1, .step_stride = 0, .operations = update_operations(first, traffic)});
    });
    return program;
  }

 private:
  static Operation on(OperationKind kind, std::uint64_t unit, std::uint64_t step = 0) {
    Operation operation;
    operation.kind = kind;
    operation.unit = unit;
    operation.step = step;
    return operation;
  }

  // Between the file and host memory.
  static Operation passage(OperationKind kind, Subject subject, std::uint64_t unit, std::uint64_t step = 0) {
    Operation operation = on(kind, unit, step);
    operation.subject = subject;
    return operation;
  }

  bool passes(MemoryClass memory_class, std::uint64_t unit) const { return in_file(plan_, memory_class, unit); }

  std::uint64_t units_with_states_in_file() const {
    return plan_.setup.offload.optimizer.tier == Tier::file ? plan_.offloaded.optimizer : 0;
  }

  std::vector<Operation> update_operations(std::uint64_t unit, const UnitTraffic& traffic) const {
    std::vector<Operation> operations;
    const auto append = [&](Operation operation, OperationKind after, std::uint64_t after_unit) {
      operation.waits_for[0] = Dependency{after, Pass::none, after_unit};
      operations.push_back(operation);
    };
    const auto fetch = [&](Subject subject) {
      append(passage(OperationKind::fetch, subject, unit), OperationKind::agree, 0);
    };
    const auto evict = [&](Subject subject) {
      append(passage(OperationKind::evict, subject, unit), OperationKind::update, unit);
    };
    const bool states_in_file = unit < units_with_states_in_file();
    if (passes(MemoryClass::gradients, unit)) fetch(Subject::gradient);
    if (passes(MemoryClass::parameters, unit)) fetch(Subject::parameter);
    if (states_in_file) fetch(Subject::optimizer_states);
    append(on(OperationKind::update, unit), OperationKind::agree, 0);
    if (states_in_file) evict(Subject::optimizer_states);
    if (optimizer_states_sharded(plan_) && !parameters_sharded(plan_)) {
      Operation gather = on(OperationKind::gather, unit);
      gather.subject = Subject::parameter;
      gather.scope = Scope::shard_group;
      gather.sent = traffic.gather_updated;
      append(gather, OperationKind::update, unit);
    }
    // On the gather's stream: after it.
    if (passes(MemoryClass::parameters, unit)) evict(Subject::parameter);
    return operations;
  }

  template <typename Visitor>
  void for_each_trainable_run(Visitor&& visit) const {
    for (std::size_t run = 0; run < plan_.layout.runs.size(); ++run) {
      if (traffic_[run].trainable && plan_.layout.runs[run].count > 0) visit(plan_.layout.runs[run], traffic_[run]);
    }
  }

  // Calls visit(first unit, units, traffic) for the parts of trainable runs in which the same is in the file.
  template <typename Visitor>
  void for_each_trainable_part(Visitor&& visit) const {
    std::array ends{units_in_file(plan_, MemoryClass::parameters), units_in_file(plan_, MemoryClass::gradients),
                    units_with_states_in_file(), plan_.layout.units};
    std::sort(ends.begin(), ends.end());
    for_each_trainable_run([&](const LayoutRun& run, const UnitTraffic& traffic) {
      std::uint64_t first = run.first_unit;
      for (const std::uint64_t end : ends) {
        const std::uint64_t last = std::clamp(end, first, run.first_unit + run.count);
        if (first < last) visit(first, last - first, traffic);
        first = last;
      }
    });
  }

  std::optional<std::uint64_t> last_trainable_unit() const {
    std::optional<std::uint64_t> last;
    for_each_trainable_run([&](const LayoutRun& run, const UnitTraffic&) { last = run.first_unit + run.count - 1; });
    return last;
  }

  Pass pass_of(std::uint64_t step) const { return step < schedule_.units() ? Pass::forward : Pass::backward; }

  const UnitTraffic& traffic_at(std::uint64_t unit) const { return traffic_[schedule_.run_of(unit)]; }

  std::vector<Operation> operations_of(std::uint64_t step, ProgramKind kind) const {
    std::vector<Operation> operations;
    const std::uint64_t unit = schedule_.unit_of(step);
    const Pass pass = pass_of(step);
    if (gathers_) append_gathers(operations, step);
    if (pass == Pass::backward && plan_.setup.recompute == Recompute::full) {
      append_compute(operations, step, Pass::recompute, kind);
    }
    append_compute(operations, step, pass, kind);
    if (gathers_) {
      for (const Use& use : schedule_.uses_at(step)) operations.push_back(on(OperationKind::release, use.unit, step));
    }
    if (pass == Pass::backward && traffic_at(unit).trainable) append_gradients(operations, step, kind);
    return operations;
  }

  // In evaluate too: backward's first use is of the unit that forward used last, so that none is issued before it.
  void append_gathers(std::vector<Operation>& operations, std::uint64_t step) const {
    for (const Use& use : schedule_.issued_at(step)) {
      if (arrival_ == OperationKind::gather && passes(MemoryClass::parameters, use.unit)) {
        operations.push_back(passage(OperationKind::fetch, Subject::parameter, use.unit, use.step));
      }
      Operation gather = on(arrival_, use.unit, use.step);
      gather.subject = Subject::parameter;
      if (arrival_ == OperationKind::gather) {
        gather.scope = Scope::shard_group;
        gather.sent = traffic_at(use.unit).gather_parameter;
      }
      // Its bytes may have been another unit's until the step before.
      if (step > 0) {
        gather.waits_for[0] = Dependency{OperationKind::compute, pass_of(step - 1), schedule_.unit_of(step - 1)};
      }
      operations.push_back(gather);
    }
  }

  bool writes_slot(std::uint64_t step) const {
    const Uses uses = schedule_.uses_at(step);
    return std::any_of(uses.begin(), uses.end(), [&](const Use& use) { return traffic_at(use.unit).gradient_slot; });
  }

  bool added_locally() const { return plan_.setup.accumulation > 1 && resolved_cadence(plan_.setup) == Cadence::step; }

  // The last reduction that is issued at a backward step or before it: reductions finish in order. Frozen units have
  // none.
  std::optional<Dependency> last_reduction(std::uint64_t step) const {
    const std::uint64_t unit = schedule_.unit_of(step);
    for (std::size_t run = schedule_.run_of(unit); run < traffic_.size(); ++run) {
      const LayoutRun& layout_run = plan_.layout.runs[run];
      if (!traffic_[run].trainable || layout_run.count == 0) continue;
      return Dependency{OperationKind::reduce, Pass::none, std::max(unit, layout_run.first_unit)};
    }
    return std::nullopt;
  }

  void append_compute(std::vector<Operation>& operations, std::uint64_t step, Pass pass, ProgramKind kind) const {
    Operation compute = on(OperationKind::compute, schedule_.unit_of(step), step);
    compute.pass = pass;
    std::size_t next = 0;
    // Gathers finish in the order they are issued: the step's last one stands for all of them.
    if (gathers_) compute.waits_for[next++] = Dependency{arrival_, Pass::none, schedule_.uses_at(step).back().unit};
    const bool reduces = kind == ProgramKind::last_micro_batch || !added_locally();
    const std::uint64_t back = overlapped_ ? 2 : 1;
    if (pass == Pass::backward && reduces && step >= schedule_.units() + back && writes_slot(step)) {
      // The bytes it writes may still be read by the reduction before (two before, where reductions overlap).
      compute.waits_for[next] = last_reduction(step - back);
    }
    operations.push_back(compute);
  }

  void append_gradients(std::vector<Operation>& operations, std::uint64_t step, ProgramKind kind) const {
    const std::uint64_t unit = schedule_.unit_of(step);
    const UnitTraffic& traffic = traffic_at(unit);
    const bool last = kind == ProgramKind::last_micro_batch;
    const Dependency computed{OperationKind::compute, Pass::backward, unit};
    const auto append = [&](OperationKind operation_kind, Scope scope, Bytes sent, Dependency after) {
      Operation operation = on(operation_kind, unit, step);
      operation.subject = Subject::gradient;
      operation.scope = scope;
      operation.sent = sent;
      operation.waits_for[0] = after;
      operations.push_back(operation);
    };
    const bool passes_by = passes(MemoryClass::gradients, unit);
    // Where there may be sums of earlier micro-batches to add to.
    if (passes_by && plan_.setup.accumulation > 1) {
      operations.push_back(passage(OperationKind::fetch, Subject::gradient, unit, step));
    }
    const Dependency summed{OperationKind::accumulate, Pass::none, unit};
    const Dependency reduced{OperationKind::reduce, Pass::none, unit};
    const bool reduces = last || !added_locally();
    if (added_locally()) append(OperationKind::accumulate, Scope::none, Bytes{}, computed);
    if (reduces) {
      append(OperationKind::reduce, Scope::shard_group, traffic.reduce_in_group, added_locally() ? summed : computed);
      if (plan_.layout.replicas > 1) {
        append(OperationKind::reduce, Scope::replicas, traffic.reduce_among_replicas, reduced);
      }
      const bool everyone_updates = !optimizer_states_sharded(plan_) && plan_.layout.shards > 1;
      if (last && everyone_updates) append(OperationKind::gather, Scope::shard_group, traffic.gather_gradient, reduced);
    }
    if (!passes_by) return;
    operations.push_back(passage(OperationKind::evict, Subject::gradient, unit, step));
    operations.back().waits_for[0] = reduces ? reduced : summed;
  }

  const StepPlan& plan_;
  const Schedule& schedule_;
  std::vector<UnitTraffic> traffic_;
  bool gathers_ = false;  // parameters come into slots, by
  OperationKind arrival_ = OperationKind::gather;
  bool overlapped_ = false;
};

}  // namespace

void plan_programs(StepPlan& plan, const Schedule& schedule) {
  const ProgramBuilder builder(plan, schedule);
  const auto program = [&](ProgramKind kind) -> Program& { return plan.programs[static_cast<std::size_t>(kind)]; };
  if (plan.setup.accumulation > 1) {
    program(ProgramKind::train_micro_batch) = builder.micro_batch(ProgramKind::train_micro_batch, schedule.steps());
  }
  program(ProgramKind::last_micro_batch) = builder.micro_batch(ProgramKind::last_micro_batch, schedule.steps());
  program(ProgramKind::evaluate) = builder.micro_batch(ProgramKind::evaluate, schedule.units());
  program(ProgramKind::update) = builder.update();
}

}  // namespace shardplan
