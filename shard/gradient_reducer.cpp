#include "shard/gradient_reducer.h"

#include "base/error.h"
#include "planner/arena_plan.h"

namespace shardplan {
namespace {

ArenaPlace after(ArenaPlace place, DType dtype, std::uint64_t elements) {
  place.offset += bytes_for(dtype, elements).count();
  return place;
}

}  // namespace

GradientReducer::GradientReducer(const StepPlan& plan, PlanMemory& memory, const Communicators& communicators,
                                 const Kernels& kernels, OperationEvents& events, std::uint64_t shard)
    : plan_(plan),
      memory_(memory),
      communicators_(communicators),
      kernels_(kernels),
      compute_(events.compute()),
      communication_(events.communication()),
      shard_(shard),
      scale_(static_cast<float>(1.0 / static_cast<double>(plan.setup.world_size * plan.setup.accumulation))) {}

const BufferLayout& GradientReducer::layout_of(std::uint64_t unit, std::size_t buffer) const {
  return run_of_unit(plan_.layout, unit).unit.buffers[buffer];
}

const BufferPlan& GradientReducer::plan_of(std::uint64_t unit, std::size_t buffer) const {
  return plan_.buffers[run_index_of_unit(plan_.layout, unit)][buffer];
}

std::size_t GradientReducer::buffers_of(std::uint64_t unit) const {
  return run_of_unit(plan_.layout, unit).unit.buffers.size();
}

bool GradientReducer::adds_in_gradient(const BufferPlan& buffer) const {
  return plan_.setup.accumulation > 1 && buffer.policy.gradient_accumulator == buffer.policy.gradient;
}

ArenaPlace GradientReducer::contribution(std::uint64_t unit, std::size_t buffer) const {
  return plan_of(unit, buffer).contribution_in_gradient ? memory_.resident(BufferRole::gradient, unit, buffer)
                                                        : memory_.slot(BufferRole::contribution, unit, buffer);
}

ArenaPlace GradientReducer::own_gradient(std::uint64_t unit, std::size_t buffer) const {
  const ArenaPlace gradient = memory_.resident(BufferRole::gradient, unit, buffer);
  if (gradients_sharded(plan_)) return gradient;
  return after(gradient, plan_of(unit, buffer).policy.gradient, shard_range(layout_of(unit, buffer), shard_).begin);
}

void GradientReducer::prepare(std::uint64_t unit) {
  if (slot_bytes(plan_, BufferRole::contribution, run_index_of_unit(plan_.layout, unit)) > Bytes{}) {
    const std::uint64_t step = backward_step(plan_, unit);
    memory_.acquire(BufferRole::contribution, step, unit, gradient_slot_end(plan_, BufferRole::contribution, step));
  }
  for (std::size_t i = 0; i < buffers_of(unit); ++i) {
    if (!plan_of(unit, i).trainable) continue;
    compute_.zero(memory_.data(contribution(unit, i)),
                  bytes_for(plan_of(unit, i).policy.wire, layout_of(unit, i).padded_elements));
  }
}

void GradientReducer::prepare_reduction(std::uint64_t unit) {
  if (slot_bytes(plan_, BufferRole::partial, run_index_of_unit(plan_.layout, unit)) == Bytes{}) return;
  const std::uint64_t step = backward_step(plan_, unit);
  memory_.acquire(BufferRole::partial, step, unit, gradient_slot_end(plan_, BufferRole::partial, step));
}

// Cadence step: contributions are added up on this rank; the last sum is the contribution that is reduced.
void GradientReducer::accumulate(std::uint64_t unit, MicroBatch micro_batch) {
  for (std::size_t i = 0; i < buffers_of(unit); ++i) {
    const BufferPlan& buffer = plan_of(unit, i);
    if (!buffer.trainable) continue;
    const std::uint64_t elements = layout_of(unit, i).padded_elements;
    const BufferRole sums = adds_in_gradient(buffer) ? BufferRole::gradient : BufferRole::accumulator;
    const Elements sum(buffer.policy.gradient_accumulator, memory_.data(memory_.resident(sums, unit, i)), elements);
    const Elements part(buffer.policy.wire, memory_.data(contribution(unit, i)), elements);
    const bool sum_is_reduced = sum.dtype == part.dtype && adds_in_gradient(buffer);
    if (micro_batch.last && !sum_is_reduced) {
      if (!micro_batch.first) kernels_.accumulate(compute_, part, sum);
    } else if (micro_batch.first) {
      kernels_.cast(compute_, sum, part);
    } else {
      kernels_.accumulate(compute_, sum, part);
    }
  }
}

void GradientReducer::reduce(const Operation& operation, MicroBatch micro_batch) {
  for (std::size_t i = 0; i < buffers_of(operation.unit); ++i) {
    if (!plan_of(operation.unit, i).trainable) continue;
    if (operation.scope == Scope::replicas) {
      reduce_among_replicas(operation.unit, i, micro_batch);
    } else {
      reduce_in_group(operation.unit, i, micro_batch);
    }
  }
}

GradientReducer::Destination GradientReducer::destination(std::uint64_t unit, std::size_t buffer,
                                                          MicroBatch micro_batch) const {
  const BufferPlan& plan = plan_of(unit, buffer);
  const ArenaPlace gradient = own_gradient(unit, buffer);
  const bool sums_here = plan_.setup.accumulation > 1 && resolved_cadence(plan_.setup) == Cadence::micro_batch;
  if (!sums_here || (micro_batch.first && micro_batch.last)) return {gradient, plan.policy.gradient, false, false};
  if (adds_in_gradient(plan)) return {gradient, plan.policy.gradient, !micro_batch.first, false};
  return {memory_.resident(BufferRole::accumulator, unit, buffer), plan.policy.gradient_accumulator, !micro_batch.first,
          micro_batch.last};
}

void GradientReducer::finish(std::uint64_t unit, std::size_t buffer, const Destination& destination) {
  if (!destination.then_round) return;
  const std::uint64_t elements = layout_of(unit, buffer).shard_elements;
  kernels_.cast(communication_,
                {plan_of(unit, buffer).policy.gradient, memory_.data(own_gradient(unit, buffer)), elements},
                ConstElements(destination.dtype, memory_.data(destination.place), elements));
}

void GradientReducer::reduce_in_group(std::uint64_t unit, std::size_t buffer, MicroBatch micro_batch) {
  const BufferLayout& layout = layout_of(unit, buffer);
  const BufferPlan& plan = plan_of(unit, buffer);
  const bool from_gradient = adds_in_gradient(plan) && resolved_cadence(plan_.setup) == Cadence::step &&
                             plan.policy.wire == plan.policy.gradient;
  const Range own = shard_range(layout, shard_);
  ReduceScatter call;
  call.wire = plan.policy.wire;
  call.input = from_gradient ? memory_.resident(BufferRole::gradient, unit, buffer) : contribution(unit, buffer);
  call.elements = layout.padded_elements;
  call.mine = {own.begin, own.size()};
  call.equal_pieces = true;
  memory_.add_staging(call);
  if (plan_.layout.replicas > 1) {
    call.output = {.dtype = DType::f32, .place = memory_.slot(BufferRole::partial, unit, buffer)};
    communicators_.shard_group->reduce_scatter(call, communication_);
    return;
  }
  const Destination to = destination(unit, buffer, micro_batch);
  call.group_size = static_cast<int>(resolved_reduction_group(plan_.setup));
  call.scale = scale_;
  call.output = {
      .mode = to.add ? ReductionOutput::Mode::add : ReductionOutput::Mode::store, .dtype = to.dtype, .place = to.place};
  communicators_.shard_group->reduce_scatter(call, communication_);
  finish(unit, buffer, to);
}

// The groups' partial sums, in the order of the groups: each replica sums its part, and gathers the others'.
void GradientReducer::reduce_among_replicas(std::uint64_t unit, std::size_t buffer, MicroBatch micro_batch) {
  const BufferLayout& layout = layout_of(unit, buffer);
  const ArenaPlace partial = memory_.slot(BufferRole::partial, unit, buffer);
  const auto replica = static_cast<std::uint64_t>(communicators_.replicas->rank());
  const Range own = replica_range(layout, replica, plan_.layout.replicas);
  const ArenaPlace own_place = after(partial, DType::f32, own.begin);
  ReduceScatter call;
  call.input = partial;
  call.elements = layout.shard_elements;
  call.mine = {own.begin, own.size()};
  call.scale = scale_;
  call.output = {.dtype = DType::f32, .place = own_place};
  memory_.add_staging(call);
  communicators_.replicas->reduce_scatter(call, communication_);
  communicators_.replicas->all_gather({.dtype = DType::f32,
                                       .input = own_place,
                                       .output = partial,
                                       .elements = layout.shard_elements,
                                       .mine = {own.begin, own.size()}},
                                      communication_);
  const Destination to = destination(unit, buffer, micro_batch);
  const ConstElements sums(DType::f32, memory_.data(partial), layout.shard_elements);
  const Elements target(to.dtype, memory_.data(to.place), layout.shard_elements);
  if (to.add) {
    kernels_.accumulate(communication_, target, sums);
  } else {
    kernels_.cast(communication_, target, sums);
  }
  finish(unit, buffer, to);
}

}  // namespace shardplan
