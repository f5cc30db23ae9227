#include "planner/step_plan.h"

#include <fmt/format.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "planner/arena_plan.h"
#include "planner/passage.h"
#include "planner/programs.h"
#include "planner/schedule.h"

namespace shardplan {
namespace {

std::vector<BufferPlan> buffers_of(const StepPlan& plan, const LayoutRun& run, const UnitRun& unit_run) {
  std::vector<BufferPlan> buffers;
  for (const BufferLayout& layout : run.unit.buffers) {
    BufferPlan buffer{.policy = policy_for(plan.setup.policy, layout.dtype), .trainable = layout.trainable};
    if (layout.trainable) {
      const Policy& policy = buffer.policy;
      for (const DType dtype : {policy.parameter, policy.gradient, policy.gradient_accumulator, policy.wire}) {
        if (is_trainable_dtype(dtype)) continue;
        throw ConfigError("", tensor_name(unit_run, 0, unit_run.tensors[layout.tensors.front().tensor]),
                          fmt::format("a trainable tensor cannot have dtype {}: expected fp32, bf16, fp16 or fp64, or "
                                      "freeze it",
                                      name(dtype)));
      }
      const bool adds_in_gradient = plan.setup.accumulation > 1 && policy.gradient_accumulator == policy.gradient;
      buffer.contribution_in_gradient = !gradients_sharded(plan) && policy.wire == policy.gradient &&
                                        !adds_in_gradient && !plan.setup.offload.gradients.elsewhere();
    }
    buffers.push_back(std::move(buffer));
  }
  return buffers;
}

// Everything that decides what ranks do, as words; equal plans give equal words.
class PlanDigest {
 public:
  std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits(words_.data(), words_.size() * sizeof(std::uint64_t));
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

  void add_setup(const Setup& setup) {
    add(setup.world_size, setup.replicate, setup.stage, setup.optimizer, setup.ema, setup.prefetch, setup.accumulation,
        resolved_cadence(setup), setup.recompute, setup.transport, setup.reduction, resolved_reduction_group(setup));
    for (const OffloadedClass* placed :
         {&setup.offload.optimizer, &setup.offload.gradients, &setup.offload.parameters}) {
      add(placed->tier, std::bit_cast<std::uint64_t>(placed->fraction));
    }
    add(setup.offload.block_elements);
  }

  // Names, shapes and ties: models of equal sizes are not equal.
  void add_catalog(const Catalog& catalog) {
    for (const UnitRun& run : catalog.runs) {
      add_text(run.name);
      add(run.numbered, run.first_number, run.count, run.tensors.size());
      for (const Tensor& tensor : run.tensors) {
        add_text(tensor.name);
        add_text(tensor.tied_to);
        add(tensor.shape.size());
        for (const std::uint64_t dim : tensor.shape) add(dim);
      }
    }
  }

  void add_layout(const StepPlan& plan) {
    add(plan.layout.runs.size(), plan.ties.size());
    for (std::size_t r = 0; r < plan.layout.runs.size(); ++r) {
      const LayoutRun& run = plan.layout.runs[r];
      add(run.count, run.unit.buffers.size());
      for (std::size_t i = 0; i < run.unit.buffers.size(); ++i) {
        const BufferLayout& buffer = run.unit.buffers[i];
        const Policy& policy = plan.buffers[r][i].policy;
        add(buffer.trainable, buffer.padded_elements, buffer.granule, policy.compute, policy.parameter, policy.gradient,
            policy.gradient_accumulator, policy.master ? static_cast<int>(*policy.master) : -1, policy.first_moment,
            policy.second_moment, policy.wire, buffer.tensors.size());
        for (const TensorSlot& tensor : buffer.tensors) add(tensor.tensor, tensor.range.begin, tensor.range.end);
      }
    }
    for (const UnitTie& tie : plan.ties) add(tie.unit, tie.owner);
  }

  void add_arena(const ArenaPlan& arena) {
    add(arena.bytes.count(), arena.live_peak.count(), arena.arrays.size(), arena.slots.size());
    for (const Array& array : arena.arrays) {
      add(array.role, array.offset.count(), array.stride.count(), array.first_index, array.count);
    }
    for (const Slot& slot : arena.slots) add(slot.role, slot.offset.count(), slot.begin, slot.end);
  }

  void add_program(const Program& program) {
    add(program.segments.size());
    for (const Segment& segment : program.segments) {
      add(segment.count, segment.unit_stride, segment.step_stride, segment.operations.size());
      for (const Operation& operation : segment.operations) {
        add(operation.kind, operation.pass, operation.subject, operation.scope, operation.unit, operation.step,
            operation.sent.count());
        for (const auto& dependency : operation.waits_for) {
          add(dependency.has_value());
          if (dependency) add(dependency->kind, dependency->pass, dependency->unit);
        }
      }
    }
  }

 private:
  void add_text(std::string_view text) {
    const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
    add(hash.high64, hash.low64);
  }

  template <typename... Values>
  void add(Values... values) {
    (words_.push_back(static_cast<std::uint64_t>(values)), ...);
  }

  std::vector<std::uint64_t> words_;
};

// What the runtime's transfers can carry out.
void require_own_transfers(const StepPlan& plan) {
  const Offload& offload = plan.setup.offload;
  const auto refuse = [](const char* problem) { throw ConfigError("--offload", "", problem); };
  if (offload.optimizer.tier == Tier::pageable || offload.gradients.tier == Tier::pageable ||
      offload.parameters.tier == Tier::pageable) {
    refuse("engine shardplan keeps what it offloads in pinned host memory or in files: expected cpu or file");
  }
  if (offload.parameters.elsewhere() && offload.parameters.fraction < 1 && !parameters_sharded(plan)) {
    refuse(
        "a part of parameters that are not sharded: expected parameters=cpu or file, all of them, or --zero 3 on "
        "several "
        "GPUs");
  }
}

// Shards of our own are flat ranges of many tensors, and gradients are reduced before the update.
void require_own_kernels(const Setup& setup) {
  const OptimizerStates& optimizer = states_of(setup.optimizer);
  if (optimizer.by_shape) {
    throw ConfigError("--optimizer", "",
                      fmt::format("{} cannot be run by engine shardplan, whose shards are flat: expected adamw, adam, "
                                  "sgd, sgd-momentum or lion, or --engine deepspeed, fsdp2, megatron or paper, which "
                                  "size what they run",
                                  optimizer.name));
  }
  if (setup.optimizer_in_backward) {
    throw ConfigError("--optimizer-in-backward", "",
                      "engine shardplan updates once all ranks agree on the step: expected --engine fsdp2 or paper");
  }
}

}  // namespace

std::string_view name(BufferRole role) {
  constexpr std::array<std::string_view, 17> kNames{
      "parameter",          "gradient",         "accumulator",       "master",         "first moment",
      "second moment",      "moving average",   "control",           "staging",        "gathered parameter",
      "gradient in flight", "partial sum",      "values in and out", "ring of blocks", "records of blocks",
      "passing parameters", "passing gradients"};
  return kNames[static_cast<std::size_t>(role)];
}

MemoryClass class_of(BufferRole role) {
  switch (role) {
    case BufferRole::parameter:
      return MemoryClass::parameters;
    case BufferRole::gathered_parameter:
      return MemoryClass::gathered_parameters;
    case BufferRole::gradient:
    case BufferRole::accumulator:
    case BufferRole::contribution:
      return MemoryClass::gradients;
    case BufferRole::master:
    case BufferRole::first_moment:
    case BufferRole::second_moment:
    case BufferRole::ema:
      return MemoryClass::optimizer_states;
    case BufferRole::control:
    case BufferRole::staging:
    case BufferRole::partial:
    case BufferRole::values:
    case BufferRole::ring:
    case BufferRole::block_records:
    case BufferRole::passing_parameters:
    case BufferRole::passing_gradients:
      return MemoryClass::communication_buffers;
  }
  SHARDPLAN_CHECK(false, "a buffer role without a class");
  return MemoryClass::parameters;
}

std::string_view name(MemoryClass memory_class) {
  constexpr std::array<std::string_view, kMemoryClasses> kNames{"parameters", "gathered_parameters", "gradients",
                                                                "optimizer_states", "communication_buffers"};
  return kNames[static_cast<std::size_t>(memory_class)];
}

StepPlan make_step_plan(const Catalog& catalog, const Setup& setup) {
  validate(setup);
  require_own_kernels(setup);
  StepPlan plan;
  plan.setup = setup;
  plan.layout = make_layout(catalog, shard_count(setup), setup.replicate);
  checked_multiply(8, plan.layout.units);  // moments of a micro-batch are counted in 64 bits
  require_own_transfers(plan);
  plan.offloaded = offloaded_units(plan);
  plan.ties = unit_ties(catalog);
  plan.buffers.reserve(catalog.runs.size());
  std::vector<std::uint64_t> run_starts;
  run_starts.reserve(catalog.runs.size() + 1);
  for (std::size_t run = 0; run < catalog.runs.size(); ++run) {
    plan.buffers.push_back(buffers_of(plan, plan.layout.runs[run], catalog.runs[run]));
    run_starts.push_back(plan.layout.runs[run].first_unit);
  }
  run_starts.push_back(plan.layout.units);

  const Schedule schedule(std::move(run_starts), plan.ties, setup.prefetch,
                          {units_in_file(plan, MemoryClass::parameters), units_in_file(plan, MemoryClass::gradients)});
  plan_arena(plan, schedule);
  plan_programs(plan, schedule);

  PlanDigest digest;
  digest.add_setup(setup);
  digest.add_catalog(catalog);
  digest.add_layout(plan);
  for (const ArenaPlan* arena : {&plan.device, &plan.pinned, &plan.file}) digest.add_arena(*arena);
  for (const Program& program : plan.programs) digest.add_program(program);
  plan.hash = digest.hex();
  return plan;
}

bool parameters_in_slots(const StepPlan& plan) {
  return parameters_sharded(plan) || plan.setup.offload.parameters.elsewhere();
}

bool parameters_sharded(const StepPlan& plan) {
  return plan.layout.shards > 1 && placements_of_stage(plan.setup.stage).parameter == Placement::sharded;
}

bool gradients_sharded(const StepPlan& plan) {
  return plan.layout.shards > 1 && placements_of_stage(plan.setup.stage).gradient == Placement::sharded;
}

bool optimizer_states_sharded(const StepPlan& plan) {
  return plan.layout.shards > 1 && placements_of_stage(plan.setup.stage).optimizer_state == Placement::sharded;
}

std::uint64_t backward_step(const StepPlan& plan, std::uint64_t unit) {
  return 2 * plan.layout.units - 1 - unit;
}

std::uint64_t unit_of_step(const StepPlan& plan, std::uint64_t step) {
  return step < plan.layout.units ? step : 2 * plan.layout.units - 1 - step;
}

std::optional<ResidentPlace> resident_place(const StepPlan& plan, BufferRole role, std::uint64_t unit,
                                            std::size_t buffer) {
  const auto run = run_index_of_unit(plan.layout, unit);
  const std::uint64_t in_run = unit - plan.layout.runs[run].first_unit;
  const auto find = [&](const ArenaPlan& arena, Tier tier) -> std::optional<ResidentPlace> {
    for (const Array& array : arena.arrays) {
      if (array.role != role || array.run != run || array.buffer != buffer) continue;
      const std::uint64_t index = in_run - array.first_index;
      if (in_run < array.first_index || index >= array.count) continue;
      const std::uint64_t block =
          tier == Tier::file ? array.first_block + index * file_blocks(plan, role, array.elements) : 0;
      return ResidentPlace{tier, {array.offset + index * array.stride, array.bytes}, block};
    }
    return std::nullopt;
  };
  auto place = find(plan.device, Tier::device);
  if (!place) place = find(plan.pinned, Tier::pinned);
  if (!place) place = find(plan.file, Tier::file);
  return place;
}

std::optional<ByteRange> resident_range(const StepPlan& plan, BufferRole role, std::uint64_t unit, std::size_t buffer) {
  const auto place = resident_place(plan, role, unit, buffer);
  return place ? std::optional(place->range) : std::nullopt;
}

std::optional<ByteRange> slot_range(const StepPlan& plan, BufferRole role, std::uint64_t step, std::uint64_t unit) {
  for (const Slot& slot : plan.device.slots) {
    if (slot.role != role || step < slot.first_step || (step - slot.first_step) % slot.step_stride != 0) continue;
    const std::uint64_t use = (step - slot.first_step) / slot.step_stride;
    if (use >= slot.uses || slot.first_unit + static_cast<std::uint64_t>(slot.unit_stride) * use != unit) continue;
    return ByteRange{slot.offset, slot.bytes};
  }
  return std::nullopt;
}

}  // namespace shardplan
