// From the options of plan and explain to numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/activations/client_rank.h"
#include "planner/engines/engine.h"
#include "planner/explain.h"
#include "planner/parallel.h"
#include "planner/report.h"
#include "tools/memcalc/options.h"
#include "tools/memcalc/samples.h"

namespace shardplan::memcalc {

struct Capacity {
  std::string name;
  Bytes bytes;
};

// Whether --gpu's word is a size and not a name.
bool is_capacity(const std::string& text);
// A GPU's name from the table, or a size such as 80GiB. Throws ConfigError.
Capacity find_capacity(const std::string& text, const std::vector<std::string>& gpu_files);

// What the step plan of an optimizer is made of.
struct PlannedOptimizer {
  Catalog catalog;
  StepPlan plan;
};

struct Planned {
  Catalog catalog;  // the whole model
  Samples samples = Samples::texts;
  std::vector<RankKind> kinds;   // in the order of report.ranks
  Catalog held;                  // by the worst kind of rank; of experts apart, the others
  std::optional<StepPlan> plan;  // engine shardplan: of `held`
  // Engine shardplan, where experts have a data axis of their own: the worst kind's optimizer of experts.
  std::optional<PlannedOptimizer> experts;
  std::optional<EngineTerms> terms;  // engines deepspeed, fsdp2 and megatron: of `held`
  Report report;
  std::vector<std::string>
      uncounted;  // of each kind of rank, why its activations are not counted; empty where they are
  std::optional<Capacity> gpu;
  // false: what is known to be needed is more than the GPU has. Nothing: it may fit, the rest is not counted yet, or no
  // GPU was named.
  std::optional<bool> fits;

  const RankReport& worst() const { return report.ranks[report.worst]; }
};

// What a rank of the worst kind holds, line by line.
std::vector<Explanation> explain_device(const PlanOptions& options, const Planned& planned);

// Reads MODEL, frozen and with adapters as the options say. Throws Error.
Model read_planned_model(const PlanOptions& options);

// The same of a model that has been read: as the options' profile has it, frozen, and with adapters. Throws Error.
Model adapted(const PlanOptions& options, Model model);

// Reads MODEL and the GPU table, plans, and folds the plan into the report. Throws Error.
Planned make_planned(const PlanOptions& options);
// The same of a model that has been read.
Planned make_planned(const PlanOptions& options, Model model);

// One kind of rank through the options' engine.
struct Sized {
  Report report;  // of one rank
  Catalog held;
  std::optional<StepPlan> plan;
  std::optional<PlannedOptimizer> experts;
  std::optional<EngineTerms> terms;
  std::string uncounted;  // why activations are not counted; empty where they are, or where nobody asked
};
Sized size_kind(const PlanOptions& options, const Catalog& catalog);

// With what follows from the rest: GPUs of a node, and that torchtitan's pipelines reduce gradients once a step.
EngineOptions engine_options_of(const PlanOptions& options);

// What gradients travel in, of whichever engine.
DType wire_dtype_of(const PlanOptions& options);

// The kinds of ranks of a model, quantised where the options say so.
std::vector<RankKind> planned_kinds(const PlanOptions& options, const Model& model);

// The two sides of a rank's memory, for add_client.
EngineHolds engine_holds(const PlanOptions& options, const Sized& sized);

// Whose libraries are sized: the GPU that was named; Hopper's where none was, or its memory alone. Nothing for another vendor's.
std::optional<MegatronMachine> machine_of(const PlanOptions& options);
// Why Megatron, as engine or as profile, or profile torchtitan would not interleave this many micro-batches; empty where nothing is wrong.
std::string refused_interleaving(const PlanOptions& options);

// Workspaces of libraries, which models in one process share. Profile megatron's are its own buffers too, of each model: 0.
Bytes shared_libraries(const PlanOptions& options);
// What the driver's context and NCCL's buffers take, which is in no allocator; nothing where that is not known.
std::optional<Bytes> context_of(const PlanOptions& options);

// Of the ranks that hold `catalog`, at `stage` of the pipeline.
ClientSide client_side(const PlanOptions& options, const Model& model, const Catalog& catalog, std::uint64_t stage);
}  // namespace shardplan::memcalc
