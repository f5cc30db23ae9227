#include "planner/report.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "planner/passage.h"

namespace shardplan {
namespace {

using ClassBytes = std::array<Bytes, kMemoryClasses>;

Bytes& of(ClassBytes& classes, BufferRole role) {
  return classes[static_cast<std::size_t>(class_of(role))];
}
Bytes of(const ClassBytes& classes, MemoryClass memory_class) {
  return classes[static_cast<std::size_t>(memory_class)];
}

ClassBytes resident_bytes(const ArenaPlan& arena) {
  ClassBytes classes;
  for (const Array& array : arena.arrays) of(classes, array.role) += array.count * array.bytes;
  return classes;
}

ClassBytes live_bytes(const ArenaPlan& arena, std::uint64_t moment) {
  ClassBytes classes = resident_bytes(arena);
  for (const Slot& slot : arena.slots) {
    if (slot.begin <= moment && moment < slot.end) of(classes, slot.role) += slot.bytes;
  }
  return classes;
}

void add(Traffic& sum, const Traffic& term, std::uint64_t times) {
  sum.gather_parameters += times * term.gather_parameters;
  sum.gather_gradients += times * term.gather_gradients;
  sum.reduce_gradients += times * term.reduce_gradients;
  sum.reduce_among_replicas += times * term.reduce_among_replicas;
}

// bytes / shards, rounded up: the textbook's exact division.
Bytes split(Bytes bytes, std::uint64_t shards) {
  return Bytes{divide_up(bytes.count(), shards)};
}

// Model states of the whole model, without padding.
struct States {
  Bytes parameters;
  Bytes trainable_parameters;
  Bytes gradients;
  Bytes largest_gradient;  // of one tensor
  Bytes optimizer_states;
  Bytes accumulators;
  Bytes wire;
};

States whole_states(const Catalog& catalog, const Setup& setup) {
  States states;
  for (const UnitRun& run : catalog.runs) {
    for (const Tensor& tensor : run.tensors) {
      if (!tensor.tied_to.empty()) continue;
      const std::uint64_t count = checked_multiply(elements(tensor.shape), run.count);
      const Policy policy = policy_for(setup.policy, tensor.dtype);
      states.parameters += bytes_for(policy.parameter, count);
      if (!tensor.trainable) continue;
      states.trainable_parameters += bytes_for(policy.parameter, count);
      states.gradients += bytes_for(policy.gradient, count);
      states.largest_gradient = std::max(states.largest_gradient, bytes_for(policy.gradient, elements(tensor.shape)));
      states.wire += bytes_for(policy.wire, count);
      if (setup.accumulation > 1 && policy.gradient_accumulator != policy.gradient) {
        states.accumulators += bytes_for(policy.gradient_accumulator, count);
      }
      if (policy.master) states.optimizer_states += bytes_for(*policy.master, count);
      states.optimizer_states += run.count * state_bytes(updated_tensor(run, tensor), optimizer_choice(setup), policy);
      if (setup.ema) states.optimizer_states += bytes_for(DType::f32, count);
    }
  }
  return states;
}

}  // namespace

Traffic textbook_traffic(const Catalog& catalog, const Setup& setup) {
  const States states = whole_states(catalog, setup);
  const std::uint64_t shards = shard_count(setup);
  const auto moved = [&](Bytes whole, std::uint64_t times) { return times * split(whole * (shards - 1), shards); };
  const bool each_micro_batch = resolved_cadence(setup) == Cadence::micro_batch;
  Traffic traffic;
  traffic.reductions = each_micro_batch ? setup.accumulation : 1;
  traffic.reduce_gradients = moved(states.wire, traffic.reductions);
  if (setup.stage == 0) traffic.gather_gradients = moved(states.gradients, 1);
  if (setup.stage > 0) traffic.gathers = setup.stage == 3 ? 2 * setup.accumulation : 1;
  traffic.gather_parameters =
      moved(setup.stage == 3 ? states.parameters : states.trainable_parameters, traffic.gathers);
  if (setup.replicate > 1) {
    // An all-reduce of the shard's fp32 sums among R replicas: 2 x 4 psi/N (R-1)/R.
    const std::uint64_t replicas = setup.replicate;
    const Bytes shard = split(bytes_for(DType::f32, trainable_elements(catalog)), shards);
    traffic.reduce_among_replicas = traffic.reductions * split(2 * shard * (replicas - 1), replicas);
  }
  traffic.textbook = traffic.total();
  return traffic;
}

Cadence cadence_of(const Traffic& traffic, const Setup& setup) {
  return traffic.reductions < setup.accumulation ? Cadence::step : resolved_cadence(setup);
}

std::string_view name(Engine engine) {
  switch (engine) {
    case Engine::shardplan:
      return "shardplan";
    case Engine::deepspeed:
      return "deepspeed";
    case Engine::fsdp2:
      return "fsdp2";
    case Engine::megatron:
      return "megatron";
    case Engine::paper:
      return "paper";
  }
  return "";
}

Engine engine_named(std::string_view text) {
  for (const Engine engine : {Engine::shardplan, Engine::deepspeed, Engine::fsdp2, Engine::megatron, Engine::paper}) {
    if (name(engine) == text) return engine;
  }
  throw ConfigError(
      "--engine", "",
      fmt::format("'{}' is not a known engine: expected shardplan, deepspeed, fsdp2, megatron or paper", text));
}

Bytes least_device_bytes(const RankReport& rank) {
  const Bytes held = rank.arenas ? rank.arenas->device : rank.device.live_peak.value_or(Bytes{});
  const DeviceMemory& device = rank.device;
  return std::max({held, device.model_states(), device.peak_allocated.value_or(Bytes{}),
                   device.peak_reserved.value_or(Bytes{}), device.total.value_or(Bytes{})});
}

std::string moment_name(const Catalog& catalog, const StepPlan& plan, std::uint64_t moment) {
  const std::uint64_t step = moment / kPhases;
  const std::uint64_t unit = unit_of_step(plan, step);
  const UnitPlace place = place_of_unit(catalog, unit);
  return fmt::format("{} of {}", step < plan.layout.units ? "forward" : "backward",
                     unit_name(catalog.runs[place.run], place.index));
}

Traffic traffic_of(const Program& program) {
  Traffic traffic;
  for (const Segment& segment : program.segments) {
    for (const Operation& operation : segment.operations) {
      const Bytes sent = segment.count * operation.sent;
      if (operation.kind == OperationKind::reduce && operation.scope == Scope::replicas) {
        traffic.reduce_among_replicas += sent;
      } else if (operation.kind == OperationKind::reduce) {
        traffic.reduce_gradients += sent;
      } else if (operation.kind == OperationKind::gather && operation.subject == Subject::gradient) {
        traffic.gather_gradients += sent;
      } else if (operation.kind == OperationKind::gather) {
        traffic.gather_parameters += sent;
      }
    }
  }
  return traffic;
}

Report report_shardplan(const Catalog& catalog, const StepPlan& plan) {
  Report report{.engine = Engine::shardplan, .ranks = {}, .traffic = {}, .notes = catalog.notes};
  RankReport rank;
  rank.count = plan.setup.world_size;
  DeviceMemory& device = rank.device;
  const ClassBytes resident = resident_bytes(plan.device);
  device.parameters = of(resident, MemoryClass::parameters);
  device.gradients = of(resident, MemoryClass::gradients);
  device.optimizer_states = of(resident, MemoryClass::optimizer_states);
  const Bytes pinned = catalog.count_only ? pinned_without_passing_slots(plan) : plan.pinned.bytes;
  rank.host = {.pinned = pinned, .pageable = Bytes{}, .total = pinned, .initialization_peak = std::nullopt};
  rank.file = plan.file.bytes;
  const auto program = [&](ProgramKind kind) { return traffic_of(plan.programs[static_cast<std::size_t>(kind)]); };
  if (catalog.count_only) {
    // One flat buffer stands for the whole model: its states are right, but nobody gathers a whole model at once.
    device.allocated_after_step = device.model_states();
    report.traffic = textbook_traffic(catalog, plan.setup);
    report.ranks.push_back(rank);
    return report;
  }
  rank.arenas = Arenas{.device = plan.device.bytes, .pinned = plan.pinned.bytes, .host = {}, .file = plan.file.bytes};
  device.allocated_after_step = plan.device.bytes;
  device.live_peak = plan.device.live_peak;
  device.peak_at =
      plan.device.slots.empty() ? "throughout the step" : moment_name(catalog, plan, plan.device.peak_moment);
  const ClassBytes peak = live_bytes(plan.device, plan.device.peak_moment);
  device.at_peak.parameters = of(peak, MemoryClass::parameters);
  device.at_peak.gathered_parameters = of(peak, MemoryClass::gathered_parameters);
  device.at_peak.gradients = of(peak, MemoryClass::gradients);
  device.at_peak.optimizer_states = of(peak, MemoryClass::optimizer_states);
  device.at_peak.communication_buffers = of(peak, MemoryClass::communication_buffers);
  report.ranks.push_back(rank);

  add(report.traffic, program(ProgramKind::train_micro_batch), plan.setup.accumulation - 1);
  add(report.traffic, program(ProgramKind::last_micro_batch), 1);
  add(report.traffic, program(ProgramKind::update), 1);
  report.traffic.control = (plan.setup.world_size - 1) * kControlRecord;
  const Traffic textbook = textbook_traffic(catalog, plan.setup);
  report.traffic.gathers = textbook.gathers;
  report.traffic.reductions = textbook.reductions;
  report.traffic.textbook = textbook.textbook;
  return report;
}

Bytes paper_accumulator(const Catalog& catalog, const Setup& setup) {
  const Bytes whole = whole_states(catalog, setup).accumulators;
  return resolved_cadence(setup) == Cadence::micro_batch ? split(whole, shard_count(setup)) : whole;
}

Report report_paper(const Catalog& catalog, const Setup& setup) {
  validate(setup);
  Report report{.engine = Engine::paper, .ranks = {}, .traffic = {}, .notes = catalog.notes};
  const States states = whole_states(catalog, setup);
  const Placements placements = placements_of_stage(setup.stage);
  const auto held = [&](Bytes whole, Placement placement) {
    return placement == Placement::sharded ? split(whole, shard_count(setup)) : whole;
  };
  RankReport rank;
  rank.count = setup.world_size;
  rank.device.parameters = held(states.parameters, placements.parameter);
  rank.device.gradients = setup.optimizer_in_backward
                              ? states.largest_gradient
                              : held(states.gradients, placements.gradient) + paper_accumulator(catalog, setup);
  rank.device.optimizer_states = held(states.optimizer_states, placements.optimizer_state);
  rank.device.allocated_after_step = rank.device.model_states();
  report.ranks.push_back(rank);
  report.traffic = textbook_traffic(catalog, setup);
  report.notes.emplace_back("engine paper: the textbook formula, without padding, buffers or gathered units");
  return report;
}

}  // namespace shardplan
