// State in and out. See zero_optimizer.h.
#include "shard/state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/error.h"
#include "shard/host_buffer.h"
#include "shard/zero_optimizer.h"

namespace shardplan {
namespace {

constexpr std::array kKinds{StateKind::parameter, StateKind::first_moment, StateKind::second_moment, StateKind::ema};
static_assert(kKinds.size() == kStateKinds);

}  // namespace

std::string_view name(StateKind kind) {
  constexpr std::array<std::string_view, kStateKinds> kNames{"parameter", "first_moment", "second_moment", "ema"};
  return kNames[static_cast<std::size_t>(kind)];
}

// Full precision first; a parameter with a master is a rounded copy of it.
std::vector<ZeroOptimizer::StateArray> ZeroOptimizer::state_arrays(StateKind kind, std::uint64_t unit,
                                                                   std::size_t buffer) const {
  const BufferLayout& layout = run_of_unit(plan_.layout, unit).unit.buffers[buffer];
  const Policy& policy = plan_.buffers[run_index_of_unit(plan_.layout, unit)][buffer].policy;
  std::vector<StateArray> arrays;
  const auto add = [&](BufferRole role, DType dtype, bool sharded) {
    if (!resident_place(plan_, role, unit, buffer)) return;
    const Range held = sharded ? shard_range(layout, own_shard()) : Range{0, layout.padded_elements};
    arrays.push_back({role, unit, buffer, dtype, held});
  };
  const bool sharded = optimizer_states_sharded(plan_);
  switch (kind) {
    case StateKind::parameter:
      add(BufferRole::master, policy.master.value_or(DType::f32), sharded);
      add(BufferRole::parameter, policy.parameter, parameters_sharded(plan_));
      break;
    case StateKind::first_moment:
      add(BufferRole::first_moment, policy.first_moment, sharded);
      break;
    case StateKind::second_moment:
      add(BufferRole::second_moment, policy.second_moment, sharded);
      break;
    case StateKind::ema:
      add(BufferRole::ema, DType::f32, sharded);
      break;
  }
  return arrays;
}

std::byte* ZeroOptimizer::state_at(const StateArray& array, std::uint64_t element, Access access) {
  const std::uint64_t index = element - array.held.begin;
  const auto place = resident_place(plan_, array.role, array.unit, array.buffer);
  if (place->tier == Tier::file && array.role != BufferRole::parameter) {
    return states_->at(array.role, array.unit, array.buffer, index, access);
  }
  if (place->tier == Tier::file) {
    return passing_parameters_->at(array.role, array.unit, array.buffer, access == Access::write) +
           bytes_for(array.dtype, index).count();
  }
  return memory_.data(memory_.resident(array.role, array.unit, array.buffer)) + bytes_for(array.dtype, index).count();
}

std::uint64_t ZeroOptimizer::together(const StateArray& array, std::uint64_t element, std::uint64_t count) const {
  const auto place = resident_place(plan_, array.role, array.unit, array.buffer);
  if (place->tier != Tier::file || array.role == BufferRole::parameter) return count;
  return std::min(count, states_->together(array.unit, array.buffer, element - array.held.begin));
}

void ZeroOptimizer::close_states() {
  if (states_) states_->close();
  if (passing_parameters_) passing_parameters_->close();
}

// Calls act(range, place, elements of the flat buffer, arrays) for every tensor and kind that this rank holds any of.
template <typename Act>
void ZeroOptimizer::for_each_state(Act&& act) const {
  std::uint64_t unit = 0;
  for (const UnitRun& run : catalog_.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i, ++unit) {
      for (std::size_t t = 0; t < run.tensors.size(); ++t) {
        const TensorPlace& place = index_.tensors(unit)[t];
        if (place.tied) continue;
        const std::string whole_name = tensor_name(run, i, run.tensors[t]);
        for (const StateKind kind : kKinds) {
          const std::vector<StateArray> arrays = state_arrays(kind, unit, place.buffer);
          if (!arrays.empty()) act(StateRange{whole_name, place.ordinal, kind, 0}, place, arrays);
        }
      }
    }
  }
}

void ZeroOptimizer::require_whole_state(const char* call) const {
  SHARDPLAN_CHECK(!program_ && !commit_, fmt::format("{} inside of a program or an unfinished step", call));
  SHARDPLAN_CHECK(!half_loaded_, fmt::format("{} after a load_state() that failed: expected load_state()", call));
}

StepState ZeroOptimizer::step_state() const {
  return {.steps_applied = steps_applied_,
          .loss_scale = scaler_.scale(),
          .clean_steps = scaler_.clean_steps(),
          .hysteresis_left = scaler_.hysteresis_left()};
}

// The elements of the flat buffer that this rank visits: its shard, of which replicas share the granules.
Range ZeroOptimizer::visited_range(const TensorPlace& place) const {
  const BufferLayout& layout = run_of_unit(plan_.layout, place.unit).unit.buffers[place.buffer];
  const Range shard = shard_range(layout, own_shard());
  const Range part = replica_range(layout, place_.replica, plan_.layout.replicas);
  return intersect(place.range, {shard.begin + part.begin, shard.begin + part.end});
}

void ZeroOptimizer::list_state(const StateLister& list) const {
  for_each_state([&](StateRange range, const TensorPlace& place, const std::vector<StateArray>& arrays) {
    const Range mine = visited_range(place);
    if (mine.empty()) return;
    range.first = mine.begin - place.range.begin;
    list(range, arrays.front().dtype, mine.size());
  });
}

void ZeroOptimizer::visit_state(const StateVisitor& visit) {
  require_whole_state("visit_state()");
  SHARDPLAN_CHECK(kernels().hold_values(), "visit_state() on a device that holds no values");
  events_.join();
  static_assert(kStateChunk * sizeof(double) <= kValuesBuffer.count());
  const HostBuffer chunk = values_buffer();
  Stream& stream = events_.compute();
  for_each_state([&](StateRange range, const TensorPlace& place, const std::vector<StateArray>& arrays) {
    const Range mine = visited_range(place);
    const StateArray& array = arrays.front();
    for (std::uint64_t first = mine.begin, count = 0; first < mine.end; first += count) {
      count = together(array, first, std::min(kStateChunk, mine.end - first));
      stream.copy(chunk.data(), state_at(array, first, Access::read), bytes_for(array.dtype, count));
      stream.synchronize();
      range.first = first - place.range.begin;
      visit(range, ConstElements(array.dtype, chunk.data(), count));
    }
  });
  close_states();
}

void ZeroOptimizer::load_state(const StepState& step_state, const StateLoader& load) {
  SHARDPLAN_CHECK(!program_ && !commit_, "load_state() inside of a program or an unfinished step");
  SHARDPLAN_CHECK(kernels().hold_values(), "load_state() on a device that holds no values");
  LossScaler scaler = scaler_;
  scaler.restore(step_state.loss_scale, step_state.clean_steps, step_state.hysteresis_left);
  forget_step();
  events_.join();
  const HostBuffer chunk = values_buffer();
  half_loaded_ = true;
  Stream& stream = events_.compute();
  for_each_state([&](StateRange range, const TensorPlace& place, const std::vector<StateArray>& arrays) {
    // One array holds a shard or all; another one of the same kind the same or more.
    Range held = intersect(place.range, arrays.front().held);
    for (const StateArray& array : arrays) {
      const Range also = intersect(place.range, array.held);
      if (also.size() > held.size() || held.empty()) held = also;
    }
    for (std::uint64_t first = held.begin; first < held.end; first += kStateChunk) {
      const Range asked{first, first + std::min(kStateChunk, held.end - first)};
      range.first = first - place.range.begin;
      const Elements values(arrays.front().dtype, chunk.data(), asked.size());
      load(range, values);
      for (const StateArray& array : arrays) store_state(array, asked, values);
      stream.synchronize();
    }
  });
  close_states();
  if (file_) file_->restamp(step_state.steps_applied);
  steps_applied_ = step_state.steps_applied;
  scaler_ = scaler;
  half_loaded_ = false;
}

// What `array` holds of the flat buffer's elements `asked`, whose values are `values`.
void ZeroOptimizer::store_state(const StateArray& array, Range asked, const ConstElements& values) {
  const Range held = intersect(asked, array.held);
  if (held.empty()) return;
  for (std::uint64_t first = held.begin, count = 0; first < held.end; first += count) {
    count = together(array, first, held.end - first);
    std::byte* const to = state_at(array, first, Access::write);
    const std::byte* from = values.data + bytes_for(values.dtype, first - asked.begin).count();
    if (array.dtype == values.dtype) {
      events_.compute().copy(to, from, bytes_for(array.dtype, count));
    } else {
      kernels().cast(events_.compute(), {array.dtype, to, count}, ConstElements(values.dtype, from, count));
    }
    if (file_) events_.compute().synchronize();  // before the block that holds it can be written
  }
}

}  // namespace shardplan
