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

BufferFacts buffer_facts(const ModelFacts& model, const BufferLayout& layout) {
  BufferFacts buffer{.padded = layout.padded_elements,
                     .shard = layout.shard_elements,
                     .granule = layout.granule,
                     .trainable = layout.trainable,
                     .policy = policy_for(model.setup.policy, layout.dtype)};
  const Policy& policy = buffer.policy;
  const bool gradient_is_accumulator = policy.gradient == policy.gradient_accumulator;
  const bool whole_gradient = model.setup.stage <= 1 || model.shards == 1;
  const bool written_in_place = whole_gradient && policy.wire == policy.gradient &&
                                !(model.setup.accumulation > 1 && gradient_is_accumulator);
  buffer.has_contribution_slot = buffer.trainable && !written_in_place;
  buffer.sum_is_in_gradient = model.adds_locally && gradient_is_accumulator && policy.wire == policy.gradient;
  return buffer;
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
      case OperationKind::release: return release(index);
      case OperationKind::compute: return compute(index);
      case OperationKind::reduce:
      case OperationKind::accumulate: return gradient_operation(index);
      default: fail(fmt::format("{} does not belong here", text(operation)));
    }
  }

  // The queue of uses in order of step: a gather is issued at the first step at which it may be.
  void gather(std::size_t index) {
    const Operation& gather = walk_.operations[index];
    if (computed_) next_step();
    require(sharded_parameters_, gather, "parameters are not sharded");
    require(gather.scope == Scope::shard_group, gather, "parameters are gathered in the shard group");
    require(gather.step >= step_ && gather.step <= step_ + facts_.setup.prefetch, gather, "is issued too early or late");
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
    require(compute.pass == (recompute ? Pass::recompute : backward ? Pass::backward : Pass::forward), compute,
            "is the wrong pass");
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
      const bool reads = operation.kind == OperationKind::accumulate ||
                         (reduction_reads && operation.kind == OperationKind::reduce &&
                          operation.scope == Scope::shard_group);
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
  std::map<std::uint64_t, std::size_t> gathered_;                       // unit -> lease
  std::map<std::uint64_t, std::vector<std::size_t>> contributions_;     // unit -> backward computes that write it
  std::vector<std::vector<std::size_t>> gradient_operations_;           // of each unit
};

bool on_communication_stream(const Operation& operation) {
  return operation.kind == OperationKind::gather || operation.kind == OperationKind::reduce ||
         operation.kind == OperationKind::agree;
}

std::optional<std::size_t> index_of(const std::vector<Operation>& operations, std::size_t before,
                                    const Dependency& dependency) {
  for (std::size_t i = before; i-- > 0;) {
    const Operation& operation = operations[i];
    if (operation.kind == dependency.kind && operation.unit == dependency.unit && operation.pass == dependency.pass) {
      return i;
    }
  }
  return std::nullopt;
}

// For each operation and each of the two streams: how many operations (by index + 1) are known to have finished when it
// runs. Its own stream's earlier ones have, and what it waits for, and what those waited for.
using Clock = std::array<std::size_t, 2>;

std::vector<Clock> clocks_of(const std::vector<Operation>& operations) {
  std::vector<Clock> clocks;
  Clock latest[2] = {};
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const std::size_t stream = on_communication_stream(operations[i]) ? 1 : 0;
    Clock clock = latest[stream];
    for (const auto& dependency : operations[i].waits_for) {
      if (!dependency) continue;
      const auto other = index_of(operations, i, *dependency);
      if (!other) continue;
      for (std::size_t s = 0; s < 2; ++s) clock[s] = std::max(clock[s], clocks[*other][s]);
    }
    clock[stream] = i + 1;
    latest[stream] = clock;
    clocks.push_back(clock);
  }
  return clocks;
}

std::string text(const Lease& lease) {
  return fmt::format("{} of unit {} for step {}, moments [{}, {})", name(lease.role), lease.unit, lease.step,
                     lease.begin, lease.end);
}

// The bytes of all flat buffers in a lease's slot.
Bytes content(const StepPlan& plan, const Lease& lease) {
  Bytes total;
  for (std::size_t i = 0; i < run_of_unit(plan.layout, lease.unit).unit.buffers.size(); ++i) {
    total += buffer_in_slot(plan, lease.role, lease.unit, i).bytes;
  }
  return total;
}

bool meet(const ByteRange& a, const ByteRange& b) {
  return a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

bool in_order(const Walk& walk, const std::vector<Clock>& clocks, const Lease& first, const Lease& second) {
  for (const std::size_t a : first.accesses) {
    const std::size_t stream = on_communication_stream(walk.operations[a]) ? 1 : 0;
    for (const std::size_t b : second.accesses) {
      if (clocks[b][stream] < a + 1) return false;
    }
  }
  return true;
}

}  // namespace

ModelFacts facts_of(const Catalog& catalog, const Setup& setup) {
  ModelFacts model{.setup = setup,
                   .shards = setup.world_size / setup.replicate,
                   .replicas = setup.replicate,
                   .adds_locally = false,
                   .units = {}};
  const bool by_step = setup.cadence ? *setup.cadence == Cadence::step : setup.stage < 2;
  model.adds_locally = setup.accumulation > 1 && by_step;
  const Layout layout = make_layout(catalog, model.shards, model.replicas);
  std::map<std::string, std::uint64_t> unit_of_tensor;
  for (std::size_t run = 0; run < catalog.runs.size(); ++run) {
    for (std::uint64_t i = 0; i < catalog.runs[run].count; ++i) {
      UnitFacts unit{.run = run, .owners = {}, .buffers = {}};
      std::set<std::uint64_t> owners;
      for (const Tensor& tensor : catalog.runs[run].tensors) {
        const std::uint64_t self = model.units.size();
        unit_of_tensor[tensor_name(catalog.runs[run], i, tensor)] = self;
        if (!tensor.tied_to.empty()) owners.insert(unit_of_tensor.at(tensor.tied_to));
        owners.erase(self);
      }
      unit.owners.assign(owners.begin(), owners.end());
      for (const BufferLayout& buffer : layout.runs[run].unit.buffers) {
        unit.buffers.push_back(buffer_facts(model, buffer));
        unit.trainable |= buffer.trainable;
      }
      model.units.push_back(std::move(unit));
    }
  }
  return model;
}

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

std::string dependency_problem(const std::vector<Operation>& operations) {
  for (std::size_t i = 0; i < operations.size(); ++i) {
    for (const auto& dependency : operations[i].waits_for) {
      if (dependency && !index_of(operations, i, *dependency)) {
        return fmt::format("{} waits for {} {} of unit {}, which never comes before it", text(operations[i]),
                           name(dependency->kind), name(dependency->pass), dependency->unit);
      }
    }
  }
  return "";
}

std::string lease_problem(const StepPlan& plan, const Walk& walk) {
  const std::vector<Clock> clocks = clocks_of(walk.operations);
  std::vector<ByteRange> ranges;
  const Bytes end_of_arrays = furthest_array(plan);
  for (std::size_t i = 0; i < walk.leases.size(); ++i) {
    const Lease& lease = walk.leases[i];
    const auto range = slot_range(plan, lease.role, lease.step, lease.unit);
    if (!range) {
      if (content(plan, lease) > Bytes{}) return fmt::format("{} has no slot", text(lease));
    }
    ranges.push_back(range.value_or(ByteRange{}));
    if (!range) continue;
    if (range->offset < end_of_arrays || range->offset + range->bytes > plan.device.bytes - kArenaBaseShift) {
      return fmt::format("{} is outside the arena's slots", text(lease));
    }
    for (std::size_t j = 0; j < i; ++j) {
      const Lease& other = walk.leases[j];
      if (!meet(*range, ranges[j])) continue;
      if (lease.begin < other.end && other.begin < lease.end) {
        return fmt::format("{} and {} overlap", text(other), text(lease));
      }
      const bool other_first = other.begin < lease.begin;
      const Lease& first = other_first ? other : lease;
      const Lease& second = other_first ? lease : other;
      if (!in_order(walk, clocks, first, second)) {
        return fmt::format("{} gets the bytes of {} with nothing to wait for", text(second), text(first));
      }
    }
  }
  return "";
}

LivePeak lease_peak(const StepPlan& plan, const Walk& walk) {
  std::map<std::uint64_t, Bytes> taken;
  std::map<std::uint64_t, Bytes> given_back;
  for (const Lease& lease : walk.leases) {
    const auto range = slot_range(plan, lease.role, lease.step, lease.unit);
    if (!range) continue;
    taken[lease.begin] += range->bytes;
    given_back[lease.end] += range->bytes;
    taken[lease.end] += Bytes{};
  }
  LivePeak peak{plan.device.resident, 0};
  Bytes live = plan.device.resident;
  for (const auto& [moment, bytes] : taken) {
    live += bytes;
    if (given_back.contains(moment)) live -= given_back[moment];
    if (live > peak.bytes) peak = {live, moment};
  }
  return peak;
}

Bytes furthest_array(const StepPlan& plan) {
  Bytes furthest;
  for (const Array& array : plan.device.arrays) {
    if (array.count == 0 || array.bytes == Bytes{}) continue;
    furthest = std::max(furthest, array.offset + (array.count - 1) * array.stride + array.bytes);
  }
  return furthest;
}

Bytes furthest_lease(const StepPlan& plan, const Walk& walk) {
  Bytes furthest;
  for (const Lease& lease : walk.leases) {
    const auto range = slot_range(plan, lease.role, lease.step, lease.unit);
    if (range) furthest = std::max(furthest, range->offset + range->bytes);
  }
  return furthest;
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

Bytes expected_sent_in_step(const ModelFacts& facts) {
  const std::uint64_t peers = facts.shards - 1;
  const std::uint64_t micro_batches = facts.setup.accumulation;
  const std::uint64_t reductions = facts.adds_locally ? 1 : micro_batches;
  std::vector<std::uint64_t> uses(facts.units.size(), 2 * micro_batches);  // forward and backward
  for (const UnitFacts& unit : facts.units) {
    for (const std::uint64_t owner : unit.owners) uses[owner] += 2 * micro_batches;
  }
  Bytes total;
  for (std::size_t unit = 0; unit < facts.units.size(); ++unit) {
    for (const BufferFacts& buffer : facts.units[unit].buffers) {
      const auto to_peers = [&](DType dtype) { return peers * bytes_for(dtype, buffer.shard); };
      const Policy& policy = buffer.policy;
      if (facts.setup.stage == 3) total += uses[unit] * to_peers(policy.parameter);
      if (!buffer.trainable) continue;
      total += reductions * to_peers(policy.wire);
      if (facts.setup.stage == 0) total += to_peers(policy.gradient);
      if (facts.setup.stage == 1 || facts.setup.stage == 2) total += to_peers(policy.parameter);
      if (facts.replicas == 1) continue;
      // The replica with the most granules of the shard: the others' elements go out, then its sums come back.
      const std::uint64_t own = divide_up(buffer.shard / buffer.granule, facts.replicas) * buffer.granule;
      total += reductions * bytes_for(DType::f32, buffer.shard - own + own * (facts.replicas - 1));
    }
  }
  return total;
}

}  // namespace shardplan::test_support
