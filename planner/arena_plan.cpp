#include "planner/arena_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "planner/alignment.h"
#include "planner/packing.h"
#include "planner/passage.h"

namespace shardplan {
namespace {

// Staged reductions work on pieces of a shard, so that one staging buffer of about this size serves every unit.
constexpr Bytes kStagingLimit = 64_MiB;

// What the other ranks' contributions to one piece of a shard need, and the other groups' partial sums of a piece.
Bytes staging_bytes(const StepPlan& plan) {
  if (plan.setup.transport != Transport::staged || plan.setup.reduction != Reduction::canonical) return Bytes{};
  Bytes most;
  const auto piece = [&](std::uint64_t peers, DType dtype, const BufferLayout& buffer, std::uint64_t elements) {
    if (peers < 2) return;
    const Bytes whole = peers * bytes_for(dtype, elements);
    const Bytes least = peers * bytes_for(dtype, std::min(elements, buffer.granule));
    most = std::max(most, std::max(least, std::min(whole, kStagingLimit)));
  };
  for (std::size_t run = 0; run < plan.layout.runs.size(); ++run) {
    const UnitLayout& unit = plan.layout.runs[run].unit;
    for (std::size_t i = 0; i < unit.buffers.size(); ++i) {
      const BufferLayout& buffer = unit.buffers[i];
      if (!buffer.trainable) continue;
      piece(plan.layout.shards, plan.buffers[run][i].policy.wire, buffer, buffer.shard_elements);
      piece(plan.layout.replicas, DType::f32, buffer, replica_range(buffer, 0, plan.layout.replicas).size());
    }
  }
  return most;
}

// Bytes of one flat buffer in a slot.
Bytes slot_part(const StepPlan& plan, BufferRole role, const BufferLayout& layout, const BufferPlan& buffer) {
  switch (role) {
    case BufferRole::gathered_parameter:
      return bytes_for(buffer.policy.parameter, layout.padded_elements);
    case BufferRole::contribution:
      if (!buffer.trainable || buffer.contribution_in_gradient) return Bytes{};
      return bytes_for(buffer.policy.wire, layout.padded_elements);
    case BufferRole::partial:
      if (!buffer.trainable || plan.layout.replicas == 1) return Bytes{};
      return bytes_for(DType::f32, layout.shard_elements);
    default:
      return Bytes{};
  }
}

// Whether the next unit computes while a reduction still reads the slot.
bool overlaps_next_step(const StepPlan& plan, BufferRole role, std::size_t run) {
  return plan.setup.prefetch > 0 && (role == BufferRole::partial || reduction_reads_slot(plan, run));
}

class ArenaBuilder {
 public:
  ArenaBuilder(StepPlan& plan, const Schedule& schedule)
      : plan_(plan), schedule_(schedule), device_{plan.device}, pinned_{plan.pinned}, file_{plan.file} {}

  void build() {
    place_arrays();
    for (std::size_t run = 0; run < plan_.layout.runs.size(); ++run) {
      if (parameters_in_slots(plan_)) add_gathered(run);
      add_gradient_slots(run, BufferRole::contribution);
      add_gradient_slots(run, BufferRole::partial);
    }
    if (parameters_in_slots(plan_)) add_tied_uses();
    place_slots();
  }

 private:
  // How far an arena is filled, and how many kinds of arrays it has.
  struct Filling {
    ArenaPlan& arena;
    Bytes end{};
    std::uint64_t kinds = 0;
  };

  // `first_of_kind`: the next offset at kind x 4096, modulo 8 x 4096.
  static void place_array(Filling& filling, Array array, bool first_of_kind) {
    array.bytes = bytes_for(array.dtype, array.elements);
    array.stride = aligned(array.bytes);
    if (first_of_kind) {
      const std::uint64_t turn = 8 * kShiftUnit.count();
      const std::uint64_t wanted = filling.kinds % 8 * kShiftUnit.count();
      const std::uint64_t at = filling.end.count() % turn;
      filling.end += Bytes{at <= wanted ? wanted - at : turn - at + wanted};
      ++filling.kinds;
    }
    array.offset = round_up(filling.end, alignment_of(array.bytes));
    if (array.count > 0) filling.end = array.offset + (array.count - 1) * array.stride + array.bytes;
    filling.arena.resident += array.count * array.bytes;
    filling.arena.arrays.push_back(array);
  }

  // In a file everything is whole pages.
  void place_in_file(Array array) {
    array.bytes = bytes_for(array.dtype, array.elements);
    array.stride = round_up(array.bytes, kFilePage);
    array.offset = file_.end;
    array.first_block = plan_.blocks.blocks;
    plan_.blocks.blocks += array.count * file_blocks(plan_, array.role, array.elements);
    file_.end += array.count * array.stride;
    file_.arena.arrays.push_back(array);
  }

  struct Elsewhere {
    Tier tier;
    std::uint64_t units;
  };
  Elsewhere elsewhere(BufferRole role) const {
    const Offload& offload = plan_.setup.offload;
    switch (class_of(role)) {
      case MemoryClass::parameters:
        return {offload.parameters.tier, plan_.offloaded.parameters};
      case MemoryClass::gradients:
        return {offload.gradients.tier, plan_.offloaded.gradients};
      default:
        return {offload.optimizer.tier, plan_.offloaded.optimizer};
    }
  }

  void place_arrays() {
    constexpr std::array kRoles{BufferRole::parameter, BufferRole::gradient,     BufferRole::accumulator,
                                BufferRole::master,    BufferRole::first_moment, BufferRole::second_moment,
                                BufferRole::ema};
    plan_.blocks.block_elements = plan_.setup.offload.block_elements;
    for (const BufferRole role : kRoles) place_role(role);
    place_array(device_,
                {.role = BufferRole::control,
                 .dtype = DType::u8,
                 .elements = (plan_.setup.world_size * kControlRecord).count()},
                true);
    const Bytes staging = staging_bytes(plan_);
    if (staging > Bytes{}) {
      place_array(device_, {.role = BufferRole::staging, .dtype = DType::u8, .elements = staging.count()}, true);
    }
    if (plan_.setup.offload.any()) place_host_buffers();
    file_.arena.bytes = file_.arena.resident = file_.arena.live_peak = file_.end;
    if (pinned_.arena.arrays.empty()) return;
    pinned_.arena.live_peak = pinned_.arena.resident;
    pinned_.arena.bytes = kArenaBaseShift + pinned_.end;
  }

  void place_role(BufferRole role) {
    bool first_on_device = true;
    bool first_pinned = true;
    for (std::size_t run = 0; run < plan_.layout.runs.size(); ++run) {
      const LayoutRun& layout_run = plan_.layout.runs[run];
      const Elsewhere away = elsewhere(role);
      const std::uint64_t units = std::min(away.units - std::min(away.units, layout_run.first_unit), layout_run.count);
      for (std::size_t i = 0; i < layout_run.unit.buffers.size(); ++i) {
        const auto length = array_length(plan_, role, layout_run.unit.buffers[i], plan_.buffers[run][i]);
        if (!length) continue;
        Array array{.role = role,
                    .run = static_cast<std::uint32_t>(run),
                    .buffer = static_cast<std::uint32_t>(i),
                    .dtype = length->dtype,
                    .elements = length->elements,
                    .count = units};
        if (units > 0 && away.tier == Tier::file) {
          place_in_file(array);
        } else if (units > 0) {
          place_array(pinned_, array, std::exchange(first_pinned, false));
        }
        if (units > 0 && units == layout_run.count) continue;
        array.first_index = units;
        array.count = layout_run.count - units;
        place_array(device_, array, std::exchange(first_on_device, false));
      }
    }
  }

  // What moving bytes needs besides, in pinned host memory.
  void place_host_buffers() {
    const auto place = [&](BufferRole role, Bytes bytes) {
      if (bytes == Bytes{}) return;
      // The first of its kind is at a multiple of 4096, as direct I/O wants it.
      place_array(pinned_, {.role = role, .dtype = DType::u8, .elements = bytes.count()}, true);
    };
    place(BufferRole::values, kValuesBuffer);
    BlockPlan& blocks = plan_.blocks;
    std::uint64_t turns = 0;  // blocks of (unit, flat buffer): each a turn of the ring
    for (const LayoutRun& layout_run : plan_.layout.runs) {
      const Elsewhere away = elsewhere(BufferRole::master);
      if (away.tier != Tier::file || layout_run.first_unit >= away.units || layout_run.count == 0) continue;
      const std::uint64_t units = std::min(away.units - layout_run.first_unit, layout_run.count);
      for (std::size_t i = 0; i < layout_run.unit.buffers.size(); ++i) {
        const std::uint64_t elements = state_elements(plan_, layout_run.first_unit, i);
        const ByteRange last = role_in_ring_slot(plan_, BufferRole::ema, layout_run.first_unit, i);
        const Bytes bytes = last.offset + last.bytes;
        if (bytes == Bytes{}) continue;
        turns += units * blocks_in(plan_, elements);
        blocks.slot = std::max(blocks.slot, bytes);
      }
    }
    blocks.ring_slots = std::min(kRingSlots, turns);
    place(BufferRole::ring, blocks.ring_slots * blocks.slot);
    place(BufferRole::block_records, blocks.blocks * kBlockRecord);
    place_passing_slots(BufferRole::passing_parameters, MemoryClass::parameters);
    place_passing_slots(BufferRole::passing_gradients, MemoryClass::gradients);
  }

  void place_passing_slots(BufferRole role, MemoryClass passing) {
    for (std::uint64_t slot = 0; slot < passing_slots(plan_, passing); ++slot) {
      place_array(pinned_,
                  {.role = role,
                   .buffer = static_cast<std::uint32_t>(slot),
                   .dtype = DType::u8,
                   .elements = passing_slot_bytes(plan_, passing, slot).count()},
                  true);
    }
  }

  void add_slot(Slot slot) {
    slot.bytes = slot_bytes(plan_, slot.role, slot.run);
    if (slot.bytes > Bytes{}) plan_.device.slots.push_back(slot);
  }

  // Calls visit(first step, steps) for pieces of a run's steps, forward or backward, in which rings are full all the
  // time: the whole run, or around ties inside a run what Schedule calls regular.
  template <typename Visitor>
  void for_each_piece(std::size_t run, bool backward, Visitor&& visit) const {
    const LayoutRun& layout_run = plan_.layout.runs[run];
    if (layout_run.count == 0) return;
    const std::uint64_t start =
        backward ? schedule_.backward_of(layout_run.first_unit + layout_run.count - 1) : layout_run.first_unit;
    const std::uint64_t end = start + layout_run.count;
    const bool tied = schedule_.has_ties(layout_run.first_unit, layout_run.first_unit + layout_run.count);
    for (std::uint64_t step = start; step < end;) {
      const std::uint64_t steps = tied ? std::min(schedule_.regular_steps(step), end - step) : end - step;
      visit(step, steps);
      step += steps;
    }
  }

  // One run's gathered units, forward and backward: a ring of prefetch + 1 slots each.
  void add_gathered(std::size_t run) {
    for (const bool backward : {false, true}) {
      for_each_piece(run, backward, [&](std::uint64_t start, std::uint64_t steps) {
        const auto issue = [&](std::uint64_t step) {
          return schedule_.issue_step({step, schedule_.unit_of(step), false});
        };
        const bool whole_run = steps == plan_.layout.runs[run].count;
        const std::uint64_t ring = std::min(whole_run ? plan_.setup.prefetch + 1 : start - issue(start) + 1, steps);
        for (std::uint64_t place = 0; place < ring; ++place) {
          Slot slot = ring_slot(BufferRole::gathered_parameter, run, start, steps, place, ring);
          slot.begin = kPhases * issue(slot.first_step);
          slot.end = kPhases * last_step(slot) + 2;
          add_slot(slot);
        }
      });
    }
  }

  // A tied owner is gathered again for each unit that uses it.
  void add_tied_uses() {
    for (const UnitTie& tie : plan_.ties) {
      for (const std::uint64_t step : {tie.unit, schedule_.backward_of(tie.unit)}) {
        add_slot({.role = BufferRole::gathered_parameter,
                  .run = static_cast<std::uint32_t>(schedule_.run_of(tie.owner)),
                  .first_unit = tie.owner,
                  .first_step = step,
                  .begin = kPhases * schedule_.issue_step({step, tie.owner, true}),
                  .end = kPhases * step + 2});
      }
    }
  }

  // Gradients in flight: one slot, or two where the next unit computes while a reduction reads the last one's. A tied
  // owner's lives from the first unit that writes into it until its own reduction.
  void add_gradient_slots(std::size_t run, BufferRole role) {
    for_each_piece(run, true, [&](std::uint64_t start, std::uint64_t steps) {
      const std::uint64_t ring = std::min<std::uint64_t>(overlaps_next_step(plan_, role, run) ? 2 : 1, steps);
      for (std::uint64_t place = 0; place < ring; ++place) {
        Slot slot = ring_slot(role, run, start, steps, place, ring);
        const bool contribution = role == BufferRole::contribution;
        slot.begin = kPhases * (contribution ? schedule_.first_gradient_step(slot.first_unit) : slot.first_step) + 1;
        slot.end = gradient_slot_end(plan_, role, last_step(slot));
        add_slot(slot);
      }
    });
  }

  Slot ring_slot(BufferRole role, std::size_t run, std::uint64_t start, std::uint64_t steps, std::uint64_t place,
                 std::uint64_t ring) const {
    const bool backward = start >= schedule_.units();
    return {.role = role,
            .run = static_cast<std::uint32_t>(run),
            .first_unit = schedule_.unit_of(start + place),
            .unit_stride = static_cast<std::int32_t>(ring) * (backward ? -1 : 1),
            .first_step = start + place,
            .step_stride = ring,
            .uses = divide_up(steps - place, ring)};
  }

  static std::uint64_t last_step(const Slot& slot) { return slot.first_step + (slot.uses - 1) * slot.step_stride; }

  void place_slots() {
    std::vector<Interval> intervals;
    intervals.reserve(plan_.device.slots.size());
    for (const Slot& slot : plan_.device.slots) intervals.push_back({slot.begin, slot.end, slot.bytes, Bytes{}});
    const Peak peak = live_peak(intervals);
    const Bytes base = round_up(device_.end, 4_KiB);
    const Bytes top = pack(intervals, base);
    // Exactly the furthest end that will be handed out: a recording device measures the same number.
    const Bytes furthest = intervals.empty() ? device_.end : base + top;
    for (std::size_t i = 0; i < intervals.size(); ++i) plan_.device.slots[i].offset = base + intervals[i].offset;
    plan_.device.live_peak = plan_.device.resident + peak.bytes;
    plan_.device.peak_moment = peak.moment;
    plan_.device.bytes = kArenaBaseShift + furthest;
  }

  StepPlan& plan_;
  const Schedule& schedule_;
  Filling device_;
  Filling pinned_;
  Filling file_;
};

// The first units, in order, that hold `fraction` of the elements that `weight` says.
template <typename Weight>
std::uint64_t units_that_hold(const Layout& layout, const OffloadedClass& placed, Weight&& weight) {
  if (!placed.elsewhere()) return 0;
  if (placed.fraction == 1) return layout.units;
  double total = 0;
  for (const LayoutRun& run : layout.runs) total += static_cast<double>(run.count) * weight(run.unit);
  double left = placed.fraction * total;
  for (const LayoutRun& run : layout.runs) {
    const double each = weight(run.unit);
    const double all = static_cast<double>(run.count) * each;
    if (all >= left && each > 0) return run.first_unit + static_cast<std::uint64_t>(std::ceil(left / each));
    left -= all;
  }
  return layout.units;
}

double elements_of(const UnitLayout& unit, bool only_trainable) {
  double elements = 0;
  for (const BufferLayout& buffer : unit.buffers) {
    if (buffer.trainable || !only_trainable) elements += static_cast<double>(buffer.padded_elements);
  }
  return elements;
}

}  // namespace

// The dtype and the elements per unit.
std::optional<ArrayLength> array_length(const StepPlan& plan, BufferRole role, const BufferLayout& layout,
                                        const BufferPlan& buffer) {
  const auto length = [&](DType dtype, bool sharded) {
    return ArrayLength{dtype, sharded ? layout.shard_elements : layout.padded_elements};
  };
  const Policy& policy = buffer.policy;
  if (role == BufferRole::parameter) return length(policy.parameter, parameters_sharded(plan));
  if (!buffer.trainable) return std::nullopt;
  const OptimizerStates& states = states_of(plan.setup.optimizer);
  const bool sharded = optimizer_states_sharded(plan);
  switch (role) {
    case BufferRole::gradient:
      return length(policy.gradient, gradients_sharded(plan));
    case BufferRole::accumulator:
      if (plan.setup.accumulation == 1 || policy.gradient_accumulator == policy.gradient) return std::nullopt;
      return length(policy.gradient_accumulator, resolved_cadence(plan.setup) == Cadence::micro_batch);
    case BufferRole::master:
      if (!policy.master) return std::nullopt;
      return length(*policy.master, sharded);
    case BufferRole::first_moment:
      if (!states.first_moment) return std::nullopt;
      return length(policy.first_moment, sharded);
    case BufferRole::second_moment:
      if (!states.second_moment) return std::nullopt;
      return length(policy.second_moment, sharded);
    case BufferRole::ema:
      if (!plan.setup.ema) return std::nullopt;
      return length(DType::f32, sharded);
    default:
      return std::nullopt;
  }
}

OffloadedUnits offloaded_units(const StepPlan& plan) {
  const Offload& offload = plan.setup.offload;
  const auto trainable = [](const UnitLayout& unit) { return elements_of(unit, true); };
  return {.optimizer = units_that_hold(plan.layout, offload.optimizer, trainable),
          .gradients = units_that_hold(plan.layout, offload.gradients, trainable),
          .parameters = units_that_hold(plan.layout, offload.parameters,
                                        [](const UnitLayout& unit) { return elements_of(unit, false); })};
}

std::uint64_t blocks_in(const StepPlan& plan, std::uint64_t elements) {
  return divide_up(elements, plan.blocks.block_elements);
}

Range block_range(const StepPlan& plan, std::uint64_t elements, std::uint64_t block) {
  const std::uint64_t begin = block * plan.blocks.block_elements;
  return {begin, std::min(elements, begin + plan.blocks.block_elements)};
}

ByteRange role_in_ring_slot(const StepPlan& plan, BufferRole role, std::uint64_t unit, std::size_t buffer) {
  const std::size_t run = run_index_of_unit(plan.layout, unit);
  ByteRange range;
  for (const BufferRole state : kStateRoles) {
    range.offset += range.bytes;
    const auto length =
        array_length(plan, state, plan.layout.runs[run].unit.buffers[buffer], plan.buffers[run][buffer]);
    const std::uint64_t elements = length ? std::min(length->elements, plan.blocks.block_elements) : 0;
    range.bytes = length ? round_up(bytes_for(length->dtype, elements), kFilePage) : Bytes{};
    if (state == role) break;
  }
  return range;
}

std::uint64_t state_elements(const StepPlan& plan, std::uint64_t unit, std::size_t buffer) {
  const BufferLayout& layout = run_of_unit(plan.layout, unit).unit.buffers[buffer];
  return optimizer_states_sharded(plan) ? layout.shard_elements : layout.padded_elements;
}

Bytes slot_bytes(const StepPlan& plan, BufferRole role, std::size_t run) {
  const UnitLayout& unit = plan.layout.runs[run].unit;
  if (unit.buffers.empty()) return Bytes{};
  const ByteRange last = buffer_in_slot(plan, role, plan.layout.runs[run].first_unit, unit.buffers.size() - 1);
  return aligned(last.offset + last.bytes);
}

bool reduction_reads_slot(const StepPlan& plan, std::size_t run) {
  if (plan.setup.accumulation == 1 || resolved_cadence(plan.setup) == Cadence::micro_batch) return true;
  // Cadence step: the sum lies in the resident gradient where that is the accumulator, else it is rounded to the slot.
  for (const BufferPlan& buffer : plan.buffers[run]) {
    if (!buffer.trainable || buffer.contribution_in_gradient) continue;
    if (buffer.policy.gradient_accumulator != buffer.policy.gradient) return true;
    if (buffer.policy.wire != buffer.policy.gradient) return true;
  }
  return false;
}

std::uint64_t gradient_slot_end(const StepPlan& plan, BufferRole role, std::uint64_t step) {
  const std::uint64_t end_of_program = 2 * plan.layout.units;
  const std::size_t run = run_index_of_unit(plan.layout, unit_of_step(plan, step));
  return kPhases * std::min(step + (overlaps_next_step(plan, role, run) ? 2 : 1), end_of_program);
}

ByteRange buffer_in_slot(const StepPlan& plan, BufferRole role, std::uint64_t unit, std::size_t buffer) {
  const std::size_t run = run_index_of_unit(plan.layout, unit);
  const LayoutRun& layout_run = plan.layout.runs[run];
  SHARDPLAN_CHECK(buffer < layout_run.unit.buffers.size(), "a unit has no such flat buffer");
  ByteRange range;
  for (std::size_t i = 0; i <= buffer; ++i) {
    const Bytes end = range.offset + range.bytes;
    range.bytes = slot_part(plan, role, layout_run.unit.buffers[i], plan.buffers[run][i]);
    range.offset = round_up(end, alignment_of(range.bytes));
  }
  return range;
}

void plan_arena(StepPlan& plan, const Schedule& schedule) {
  ArenaBuilder(plan, schedule).build();
}

}  // namespace shardplan
