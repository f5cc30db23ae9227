// The memory report: what one rank of each kind holds and sends, whichever engine it is sized for.
//
//   shardplan  a fold of the step plan: the bytes that the runtime will allocate, difference 0;
//   deepspeed, fsdp2, megatron
//              a fold of what those allocate (planner/engines/engine.h);
//   paper      the textbook formula: exact division, rounded up to a byte, no padding and no buffers.
//
// What is not known is nothing (std::nullopt), never 0: activations, the loss and library workspaces belong to the
// client's own code and are not counted here yet, so no total is given.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/step_plan.h"

namespace shardplan {

enum class Engine : std::uint8_t { shardplan, deepspeed, fsdp2, megatron, paper };
std::string_view name(Engine engine);
Engine engine_named(std::string_view name);  // throws ConfigError, with the known names

// Bytes by class at the moment of the peak. In the order of a report.
struct PeakMemory {
  std::optional<Bytes> parameters;
  std::optional<Bytes> gathered_parameters;
  std::optional<Bytes> gradients;
  std::optional<Bytes> optimizer_states;
  std::optional<Bytes> communication_buffers;
  std::optional<Bytes> activations;
  std::optional<Bytes> loss;
  std::optional<Bytes> workspace;
};

struct DeviceMemory {
  // What is resident all the time, by class.
  Bytes parameters;
  Bytes gradients;
  Bytes optimizer_states;
  Bytes model_states() const { return parameters + gradients + optimizer_states; }

  std::optional<Bytes> allocated_after_step;  // what stays between steps
  std::optional<Bytes> peak_allocated;
  std::optional<Bytes> peak_reserved;
  std::optional<Bytes> context;
  std::optional<Bytes> total;  // peak_reserved and context
  // The engine's own worst moment, and what it holds then.
  std::optional<Bytes> live_peak;
  std::string peak_at;
  PeakMemory at_peak;
};

struct HostMemory {
  std::optional<Bytes> pinned;
  std::optional<Bytes> pageable;
  std::optional<Bytes> total;
  std::optional<Bytes> initialization_peak;  // of all ranks of one node together, while they start
};

// What our engine allocates per tier; nothing for other engines.
struct Arenas {
  Bytes device;
  Bytes pinned;
  Bytes host;
  Bytes file;
};

struct RankReport {
  std::string role = "all";
  std::uint64_t count = 1;
  DeviceMemory device;
  HostMemory host;
  std::optional<Bytes> file;
  std::optional<Arenas> arenas;
};

// Payload that one rank sends in one step. Where ranks differ: the most.
struct Traffic {
  Bytes gather_parameters;
  Bytes gather_gradients;
  Bytes reduce_gradients;       // within a shard group
  Bytes reduce_among_replicas;  // hybrid sharding
  Bytes total() const { return gather_parameters + gather_gradients + reduce_gradients + reduce_among_replicas; }
  // The one 64-byte record per rank that `agree` exchanges; not payload.
  Bytes control;
  // How often in a step each parameter is gathered and each gradient reduced.
  std::uint64_t gathers = 0;
  std::uint64_t reductions = 1;
  // ZeRO's figure for the same model and world without padding: 2 or 3 psi (N-1)/N (arXiv 1910.02054, sec. 7), each
  // term in its own dtype and as often as the setup has it.
  Bytes textbook;
};

struct Report {
  Engine engine = Engine::shardplan;
  std::vector<RankReport> ranks;
  std::size_t worst = 0;  // index into ranks: the largest device arena, or model states
  Traffic traffic;
  std::vector<std::string> notes;
};

// Folds the plan. `catalog` is the one it was made from.
Report report_shardplan(const Catalog& catalog, const StepPlan& plan);

Report report_paper(const Catalog& catalog, const Setup& setup);
// The textbook's traffic: each of gather and reduce moves psi (N-1)/N per rank; an all-reduce is both.
Traffic textbook_traffic(const Catalog& catalog, const Setup& setup);
// When gradients are reduced: as the set-up has it, but where an engine lets them wait for the last micro-batch.
Cadence cadence_of(const Traffic& traffic, const Setup& setup);
// The part of engine paper's gradients that is the accumulator of micro-batches (A > 1).
Bytes paper_accumulator(const Catalog& catalog, const Setup& setup);

// What is known to be needed on the device: the peak with activations where they are counted, with what the allocator reserves
// and the context takes where that is known too; else our arena, another engine's peak, or the model states alone.
Bytes least_device_bytes(const RankReport& rank);

// Bytes per moment that a report calls by name: "backward of model.layers.31".
std::string moment_name(const Catalog& catalog, const StepPlan& plan, std::uint64_t moment);

// Payload of one program, by what it is.
Traffic traffic_of(const Program& program);

}  // namespace shardplan
