#include "tests/support/plan_walk.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "planner/alignment.h"

namespace shardplan::test_support {
namespace {

std::string text(const Operation& operation) {
  return fmt::format("{} {} of unit {} for step {}", name(operation.kind), name(operation.pass), operation.unit,
                     operation.step);
}

// Walks one program and keeps what a rank keeps: the step it is at, what is gathered, what has been done for each unit.
class ProgramWalker {
 public:
  ProgramWalker(const StepPlan& plan, const ModelFacts& facts, ProgramKind kind) : facts_(facts), kind_(kind) {
    for_each_operation(plan.programs[static_cast<std::size_t>(kind)],
                       [&](const Operation& operation) { walk_.operations.push_back(operation); });
    sharded_parameters_ = facts.setup.stage == 3 && facts.shards > 1;
    steps_ = (kind == ProgramKind::evaluate ? 1 : 2) * facts.units.size();
    gradient_operations_.resize(facts.units.size());
  }

  Walk run() {
    for (std::size_t i = 0; i < walk_.operations.size() && walk_.problem.empty(); ++i) visit(i);
    if (walk_.problem.empty()) finish();
    return std::move(walk_);
  }

 private:
  void fail(const std::string& problem) {
    if (walk_.problem.empty()) walk_.problem = fmt::format("{}, step {}: {}", name(kind_), step_, problem);
  }

  void require(bool condition, const Operation& operation, const char* what) {
    if (!condition) fail(fmt::format("{}: {}", text(operation), what));
  }

  std::uint64_t unit_of(std::uint64_t step) const {
    return step < facts_.units.size() ? step : 2 * facts_.units.size() - 1 - step;
  }

  std::set<std::uint64_t> needed_at(std::uint64_t step) const {
    const UnitFacts& unit = facts_.units[unit_of(step)];
    std::set<std::uint64_t> needed(unit.owners.begin(), unit.owners.end());
    needed.insert(unit_of(step));
    return needed;
  }

  void visit(std::size_t index) {
    const Operation& operation = walk_.operations[index];
    require(operation.unit < facts_.units.size(), operation, "there is no such unit");
    if (!walk_.problem.empty()) return;
    switch (operation.kind) {
      case OperationKind::gather:
        return operation.subject == Subject::parameter ? gather(index) : gradient_operation(index);
      case OperationKind::release:
        return release(index);
      case OperationKind::compute:
        return compute(index);
      case OperationKind::reduce:
      case OperationKind::accumulate:
        return gradient_operation(index);
      default:
        fail(fmt::format("{} does not belong here", text(operation)));
    }
  }

  // The queue of uses in order of step: a gather is issued at the first step at which it may be.
  void gather(std::size_t index) {
    const Operation& gather = walk_.operations[index];
    if (computed_) next_step();
    require(sharded_parameters_, gather, "parameters are not sharded");
    require(gather.scope == Scope::shard_group, gather, "parameters are gathered in the shard group");
    require(gather.step >= step_ && gather.step <= step_ + facts_.setup.prefetch, gather,
            "is issued too early or late");
    require(gather.step < steps_ && needed_at(gather.step).contains(gather.unit), gather, "nothing uses it");
    require(gather.step >= last_gather_step_, gather, "is out of order");
    require(!gathered_.contains(gather.unit), gather, "is gathered already");
    require(!recomputed_, gather, "comes between the step's computes");
    last_gather_step_ = gather.step;
    std::size_t tied = 0;
    for (const auto& [unit, lease] : gathered_) tied += unit_of(walk_.leases[lease].step) != unit ? 1U : 0U;
    require(gathered_.size() - tied <= facts_.setup.prefetch + 1, gather, "is one gathered unit too many");
    gathered_[gather.unit] = walk_.leases.size();
    walk_.leases.push_back({.role = BufferRole::gathered_parameter,
                            .unit = gather.unit,
                            .step = gather.step,
                            .begin = 4 * step_,
                            .end = 4 * gather.step + 2,
                            .accesses = {index}});
  }

  void release(std::size_t index) {
    const Operation& release = walk_.operations[index];
    const auto held = gathered_.find(release.unit);
    require(held != gathered_.end(), release, "is not gathered");
    if (held == gathered_.end()) return;
    require(computed_ && walk_.leases[held->second].step == step_, release, "is released before its use");
    gathered_.erase(held);
  }

  void compute(std::size_t index) {
    const Operation& compute = walk_.operations[index];
    if (computed_) next_step();
    const bool backward = step_ >= facts_.units.size();
    const bool recompute = backward && facts_.setup.recompute == Recompute::full && !recomputed_;
    require(step_ < steps_ && compute.step == step_ && compute.unit == unit_of(step_), compute, "is not next");
    require(compute.pass == (recompute  ? Pass::recompute
                             : backward ? Pass::backward
                                        : Pass::forward),
            compute, "is the wrong pass");
    if (!walk_.problem.empty()) return;
    for (const std::uint64_t unit : sharded_parameters_ ? needed_at(step_) : std::set<std::uint64_t>{}) {
      const auto held = gathered_.find(unit);
      const bool ready = held != gathered_.end() && walk_.leases[held->second].step == step_;
      require(ready, compute, "a unit that it needs is not gathered");
      if (ready) walk_.leases[held->second].accesses.push_back(index);
    }
    if (compute.pass == Pass::backward) {
      for (const std::uint64_t unit : needed_at(step_)) contributions_[unit].push_back(index);
    }
    recomputed_ = recompute;
    computed_ = !recompute;
  }

  void gradient_operation(std::size_t index) {
    const Operation& operation = walk_.operations[index];
    require(operation.subject == Subject::gradient, operation, "is about gradients");
    require(computed_ && step_ == facts_.backward_of(operation.unit) && operation.step == step_, operation,
            "does not follow the unit's backward, which is the last contribution");
    gradient_operations_[operation.unit].push_back(index);
  }

  void next_step() {
    for (const auto& [unit, lease] : gathered_) {
      if (walk_.leases[lease].step <= step_) fail(fmt::format("unit {} is not released after its use", unit));
    }
    ++step_;
    computed_ = false;
    recomputed_ = false;
  }

  void finish() {
    if (steps_ > 0) {
      if (!computed_ || step_ + 1 != steps_) fail("the program ends too early");
      next_step();
    }
    if (!gathered_.empty()) fail("something stays gathered");
    if (kind_ == ProgramKind::evaluate) return;
    for (std::uint64_t unit = 0; unit < facts_.units.size(); ++unit) finish_unit(unit);
  }

  using Expected = std::vector<std::pair<OperationKind, Scope>>;

  Expected expected_gradient_operations(const UnitFacts& unit) const {
    Expected expected;
    if (!unit.trainable) return expected;
    const bool last = kind_ == ProgramKind::last_micro_batch;
    if (facts_.adds_locally) expected.emplace_back(OperationKind::accumulate, Scope::none);
    if (facts_.adds_locally && !last) return expected;
    expected.emplace_back(OperationKind::reduce, Scope::shard_group);
    if (facts_.replicas > 1) expected.emplace_back(OperationKind::reduce, Scope::replicas);
    if (last && facts_.setup.stage == 0 && facts_.shards > 1) {
      expected.emplace_back(OperationKind::gather, Scope::shard_group);
    }
    return expected;
  }

  void finish_unit(std::uint64_t unit) {
    Expected actual;
    for (const std::size_t index : gradient_operations_[unit]) {
      actual.emplace_back(walk_.operations[index].kind, walk_.operations[index].scope);
    }
    if (actual != expected_gradient_operations(facts_.units[unit])) {
      fail(fmt::format("unit {}: not the operations its gradient needs", unit));
      return;
    }
    lease_contribution(unit);
    if (facts_.replicas > 1) lease_partial(unit);
  }

  // The end of a slot that a reduction reads: the next step's start, one later where reductions overlap backward.
  std::uint64_t end_after(std::uint64_t step, bool reduction_reads) const {
    return std::min(4 * (step + (reduction_reads && facts_.setup.prefetch > 0 ? 2 : 1)), 4 * steps_);
  }

  void lease_contribution(std::uint64_t unit) {
    bool any = false;
    bool reduction_reads = false;
    for (const BufferFacts& buffer : facts_.units[unit].buffers) {
      any |= buffer.has_contribution_slot && buffer.padded > 0;
      reduction_reads |= buffer.has_contribution_slot && !buffer.sum_is_in_gradient;
    }
    if (!any) return;
    reduction_reads &= !facts_.adds_locally || kind_ == ProgramKind::last_micro_batch;
    const std::uint64_t step = facts_.backward_of(unit);
    const std::uint64_t first = walk_.operations[contributions_[unit].front()].step;
    Lease lease{.role = BufferRole::contribution,
                .unit = unit,
                .step = step,
                .begin = 4 * first + 1,
                .end = end_after(step, reduction_reads),
                .accesses = contributions_[unit]};
    for (const std::size_t index : gradient_operations_[unit]) {
      const Operation& operation = walk_.operations[index];
      const bool reads =
          operation.kind == OperationKind::accumulate ||
          (reduction_reads && operation.kind == OperationKind::reduce && operation.scope == Scope::shard_group);
      if (reads) lease.accesses.push_back(index);
    }
    walk_.leases.push_back(std::move(lease));
  }

  void lease_partial(std::uint64_t unit) {
    const std::uint64_t step = facts_.backward_of(unit);
    Lease lease{.role = BufferRole::partial,
                .unit = unit,
                .step = step,
                .begin = 4 * step + 1,
                .end = end_after(step, true),
                .accesses = {}};
    for (const std::size_t index : gradient_operations_[unit]) {
      if (walk_.operations[index].kind == OperationKind::reduce) lease.accesses.push_back(index);
    }
    bool any = false;
    for (const BufferFacts& buffer : facts_.units[unit].buffers) any |= buffer.trainable && buffer.padded > 0;
    if (any && !lease.accesses.empty()) walk_.leases.push_back(std::move(lease));
  }

  const ModelFacts& facts_;
  ProgramKind kind_;
  Walk walk_;
  bool sharded_parameters_ = false;
  std::uint64_t steps_ = 0;
  std::uint64_t step_ = 0;
  bool computed_ = false;
  bool recomputed_ = false;
  std::uint64_t last_gather_step_ = 0;
  std::map<std::uint64_t, std::size_t> gathered_;                    // unit -> lease
  std::map<std::uint64_t, std::vector<std::size_t>> contributions_;  // unit -> backward computes that write it
  std::vector<std::vector<std::size_t>> gradient_operations_;        // of each unit
};

}  // namespace

Walk walk_program(const StepPlan& plan, const ModelFacts& facts, ProgramKind kind) {
  return ProgramWalker(plan, facts, kind).run();
}

std::string update_problem(const StepPlan& plan, const ModelFacts& facts) {
  using Step = std::pair<OperationKind, std::uint64_t>;
  std::vector<Step> expected;
  for (std::uint64_t unit = 0; unit < facts.units.size(); ++unit) {
    if (facts.units[unit].trainable) expected.emplace_back(OperationKind::norm, unit);
  }
  expected.emplace_back(OperationKind::agree, 0);
  const bool gathers = facts.shards > 1 && (facts.setup.stage == 1 || facts.setup.stage == 2);
  for (std::uint64_t unit = 0; unit < facts.units.size(); ++unit) {
    if (!facts.units[unit].trainable) continue;
    expected.emplace_back(OperationKind::update, unit);
    if (gathers) expected.emplace_back(OperationKind::gather, unit);
  }
  std::vector<Operation> operations;
  std::vector<Step> actual;
  std::string problem;
  for_each_operation(plan.programs[static_cast<std::size_t>(ProgramKind::update)], [&](const Operation& operation) {
    operations.push_back(operation);
    actual.emplace_back(operation.kind, operation.unit);
    if (operation.step != 0) problem = fmt::format("{}: an update has no steps", text(operation));
    if (operation.kind == OperationKind::gather && operation.subject != Subject::parameter) {
      problem = fmt::format("{}: an update gathers parameters", text(operation));
    }
    const auto waits_for = [&](OperationKind kind) { return operation.waits_for[0]->kind == kind; };
    if ((operation.kind == OperationKind::update && !waits_for(OperationKind::agree)) ||
        (operation.kind == OperationKind::gather && !waits_for(OperationKind::update))) {
      problem = fmt::format("{}: waits for the wrong thing", text(operation));
    }
  });
  if (actual != expected) return "update: not norm of each trainable unit, agree, update of each";
  return problem.empty() ? dependency_problem(operations) : problem;
}

std::optional<std::size_t> index_of_dependency(const std::vector<Operation>& operations, std::size_t before,
                                               const Dependency& dependency) {
  for (std::size_t i = before; i-- > 0;) {
    const Operation& operation = operations[i];
    if (operation.kind == dependency.kind && operation.unit == dependency.unit && operation.pass == dependency.pass) {
      return i;
    }
  }
  return std::nullopt;
}

std::string dependency_problem(const std::vector<Operation>& operations) {
  for (std::size_t i = 0; i < operations.size(); ++i) {
    for (const auto& dependency : operations[i].waits_for) {
      if (dependency && !index_of_dependency(operations, i, *dependency)) {
        return fmt::format("{} waits for {} {} of unit {}, which never comes before it", text(operations[i]),
                           name(dependency->kind), name(dependency->pass), dependency->unit);
      }
    }
  }
  return "";
}

Bytes sent_in_step(const StepPlan& plan) {
  const auto sent = [&](ProgramKind kind) {
    Bytes total;
    for_each_operation(plan.programs[static_cast<std::size_t>(kind)],
                       [&](const Operation& operation) { total += operation.sent; });
    return total;
  };
  return (plan.setup.accumulation - 1) * sent(ProgramKind::train_micro_batch) + sent(ProgramKind::last_micro_batch) +
         sent(ProgramKind::update);
}

}  // namespace shardplan::test_support
