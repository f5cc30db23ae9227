#include "tools/memcalc/planning.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "planner/activations/pipeline.h"
#include "planner/engines/fsdp2.h"
#include "planner/engines/workspaces.h"
#include "planner/families/litgpt.h"
#include "planner/formats/parameter_count.h"
#include "planner/formats/read_model.h"
#include "planner/snapshot.h"
#include "planner/world_report.h"
#include "tools/memcalc/text_parts.h"
#include "tools/memcalc/uncounted.h"

namespace shardplan::memcalc {
namespace {

void add_notes(const PlanOptions& options, const Catalog& catalog, Report& report) {
  const Setup& setup = options.setup;
  report.notes.insert(report.notes.end(), options.notes.begin(), options.notes.end());
  if (catalog.stored_dtype && *catalog.stored_dtype != setup.policy.parameter) {
    report.notes.push_back(fmt::format("the model's file says {}; {} trains parameters in {}",
                                       name(*catalog.stored_dtype), setup.policy.name, name(setup.policy.parameter)));
  }
  const bool counted = report.ranks[report.worst].device.peak_allocated.has_value();
  if (setup.policy.compute != setup.policy.parameter && !counted) {
    report.notes.push_back(
        fmt::format("{}: copies of the weights in {} are made by the client's code and not yet counted",
                    setup.policy.name, name(setup.policy.compute)));
  }
  if (!catalog.active_parameters && options.client.expert_load != ExpertLoad{}) {
    report.notes.push_back(
        fmt::format("--moe-imbalance and --moe-capacity-factor are not used: {} has no experts", catalog.family));
  }
  if (catalog.active_parameters && counted && options.client.expert_load == ExpertLoad{}) {
    report.notes.emplace_back(
        "experts are taken to be chosen equally often: --moe-imbalance F, or worst, plans for an uneven choice");
  }
  if (experts_apart(setup.parallel)) {
    report.notes.push_back(fmt::format("experts are sharded over {}, the rest over {}",
                                       plural(expert_world_size(setup), "rank"), setup.world_size));
  }
  const std::uint64_t shards = shard_count(setup);
  if (setup.replicate > 1 && shards > options.node_gpus()) {
    report.notes.push_back(fmt::format("a shard group of {} GPUs spans nodes of {}: its gathers cross the network",
                                       shards, options.node_gpus()));
  }
}

bool holds_experts(const Catalog& catalog) {
  return std::any_of(catalog.runs.begin(), catalog.runs.end(), [](const UnitRun& run) {
    return std::any_of(run.tensors.begin(), run.tensors.end(), [](const Tensor& tensor) { return tensor.expert; });
  });
}

// Each optimizer of a rank has a snapshot of its own.
void add_snapshots(const PlanOptions& options, Sized& sized) {
  if (!options.save_background) return;
  RankReport& rank = sized.report.ranks.front();
  add_snapshot(rank, snapshot_bytes(*sized.plan));
  if (sized.experts) add_snapshot(rank, snapshot_bytes(sized.experts->plan));
}

Sized size_on_two_axes(const PlanOptions& options, const Catalog& catalog) {
  const auto [others, experts] = split_by_data_axis(catalog);
  const Setup setup = expert_setup(options.setup);
  Sized sized{.report = {}, .held = others, .plan = {}, .experts = {}, .terms = {}, .uncounted = {}};
  if (options.engine == Engine::paper) {
    sized.report = with_experts(report_paper(others, options.setup), report_paper(experts, setup));
    return sized;
  }
  sized.plan = make_step_plan(others, options.setup);
  sized.experts = {experts, make_step_plan(experts, setup)};
  sized.report = with_experts(report_shardplan(others, *sized.plan), report_shardplan(experts, sized.experts->plan));
  add_snapshots(options, sized);
  return sized;
}

// What is not known of the GPU, in words.
void add_machine_note(const PlanOptions& options, Report& report) {
  if (!options.gpu) return;
  if (is_capacity(*options.gpu)) {
    report.notes.push_back(
        fmt::format("--gpu {} does not say which GPU: libraries and context as on Hopper", *options.gpu));
  } else if (!generation_of_gpu(*options.gpu)) {
    report.notes.push_back(fmt::format("what libraries and the driver take of {} is not known", *options.gpu));
  }
}

// The blocks that an engine allocates: one for each of its terms, or our one arena.
EngineBlocks engine_blocks(const Sized& sized, bool fresh_gradients) {
  EngineBlocks blocks;
  if (sized.terms) {
    for (const Term& term : sized.terms->terms) {
      if (term.tier != Tier::device || !held(term.span, Span::backward)) continue;
      (term.span == Span::always ? blocks.resident : blocks.computing).push_back(term.bytes);
    }
    return blocks;
  }
  const RankReport& rank = sized.report.ranks.front();
  const DeviceMemory& device = rank.device;
  blocks.resident.push_back(rank.arenas ? rank.arenas->device : device.parameters + device.optimizer_states);
  if (!rank.arenas && !fresh_gradients) blocks.resident.push_back(device.gradients);
  return blocks;
}

// One communicator for each axis that has more than one rank. NCCL makes each with its first collective.
std::uint64_t communicators(const Setup& setup) {
  const Parallelism& p = setup.parallel;
  std::uint64_t count = 0;
  for (const std::uint64_t ranks : {setup.world_size, p.tensor, p.pipeline, p.context, p.expert}) count += ranks > 1;
  return count;
}

// Reserved by the allocator, and with the driver's context and NCCL's buffers: what nvidia-smi shows.
void add_reserved(const PlanOptions& options, const Model& model, const Catalog& catalog, std::uint64_t stage,
                  Sized& sized) {
  const std::optional<MegatronMachine> machine = machine_of(options);
  DeviceMemory& device = sized.report.ranks.front().device;
  const std::optional<Bytes> reserved =
      peak_reserved(engine_blocks(sized, options.client.fresh_gradients), model, catalog, options.setup,
                    options.whole_client(), stage, machine,
                    {.expandable_segments = options.megatron && options.megatron->environment.expandable_segments,
                     .empties_cache = options.client.empties_cache});
  if (!reserved) {
    sized.report.notes.push_back(
        unit_count(catalog) > kMostReplayedUnits
            ? fmt::format("no peak reserved: ranks of more than {} units are not replayed", kMostReplayedUnits)
            : fmt::format("no peak reserved: the order of passes of {} is not written out",
                          name(resolved_schedule(options.setup.parallel))));
    return;
  }
  device.peak_reserved = std::max(*reserved, *device.peak_allocated);
  device.context = context_of(options);
  if (device.context) device.total = *device.peak_reserved + *device.context;
}

// Counts activations where the client says enough; else says in a note what is missing.
void add_activations(const PlanOptions& options, const Model& model, const Catalog& catalog, std::uint64_t stage,
                     Sized& sized) {
  if (options.parameters || (!options.sequence && model.architecture.vocabulary > 0)) return;
  const ClientSide client = client_side(options, model, catalog, stage);
  if (client.holds) {
    add_machine_note(options, sized.report);
    add_client(sized.report.ranks.front().device, engine_holds(options, sized), *client.holds);
    add_reserved(options, model, catalog, stage, sized);
  } else {
    sized.uncounted = client.unknown_because;
  }
}

// Whether the total of every rank is known: a rank whose activations are not may need more than the worst of the others.
bool all_known(const std::vector<RankReport>& ranks) {
  return std::all_of(ranks.begin(), ranks.end(), [](const RankReport& rank) { return rank.device.total.has_value(); });
}

Planned plan_and_report(const PlanOptions& options, Model model) {
  if (const std::string why = refused_interleaving(options); !why.empty()) throw ConfigError("--grad-accum", "", why);
  Planned planned;
  if (options.gpu) planned.gpu = find_capacity(*options.gpu, options.gpu_files);
  planned.kinds = planned_kinds(options, model);
  std::vector<Sized> sized;
  std::vector<Report> reports;
  for (std::size_t i = 0; i < planned.kinds.size(); ++i) {
    Sized& of_kind = sized.emplace_back(size_kind(options, planned.kinds[i].catalog));
    add_activations(options, model, planned.kinds[i].catalog, i, of_kind);
    reports.push_back(of_kind.report);
    planned.uncounted.push_back(of_kind.uncounted);
  }
  planned.report = world_report(planned.kinds, std::move(reports));
  Sized& worst = sized[planned.report.worst];
  planned.held = std::move(worst.held);
  planned.plan = std::move(worst.plan);
  planned.experts = std::move(worst.experts);
  planned.terms = std::move(worst.terms);
  planned.samples = samples_of(model);
  planned.catalog = std::move(model.catalog);
  add_uncounted_notes(planned);
  add_notes_of_samples(options, planned.samples, planned.catalog.family, planned.report.notes);
  add_notes(options, planned.catalog, planned.report);
  if (planned.gpu && least_device_bytes(planned.worst()) > planned.gpu->bytes) {
    planned.fits = false;
  } else if (planned.gpu && all_known(planned.report.ranks)) {
    planned.fits = true;
  }
  return planned;
}

// The lines of both optimizers of a rank. The last line of each is the sum of its others.
std::vector<Explanation> together(std::vector<Explanation> lines, std::vector<Explanation> experts) {
  Explanation sum = std::move(lines.back());
  lines.pop_back();
  sum.bytes += experts.back().bytes;
  sum.inputs = "experts, which have a data axis of their own, and the rest";
  experts.pop_back();
  for (Explanation& line : experts) {
    line.name = "experts: " + line.name;
    lines.push_back(std::move(line));
  }
  lines.push_back(std::move(sum));
  return lines;
}

}  // namespace

std::optional<MegatronMachine> machine_of(const PlanOptions& options) {
  MegatronMachine machine;
  machine.generation = GpuGeneration::hopper;
  if (options.megatron) machine.cublas_workspace_config = options.megatron->environment.cublas_workspace_config;
  if (!options.gpu || is_capacity(*options.gpu)) return machine;
  const std::optional<GpuGeneration> named = generation_of_gpu(*options.gpu);
  if (!named) return std::nullopt;
  machine.generation = *named;
  return machine;
}

std::string refused_interleaving(const PlanOptions& options) {
  const Profile profile = options.whole_client().profile;
  const bool takes_groups =
      options.engine == Engine::megatron || profile == Profile::megatron || profile == Profile::torchtitan;
  return takes_groups ? uneven_interleaving(options.setup.parallel, options.setup.accumulation) : std::string();
}

Bytes shared_libraries(const PlanOptions& options) {
  const std::optional<MegatronMachine> machine = machine_of(options);
  if (!machine || options.whole_client().profile == Profile::megatron) return {};
  LibraryUse use;
  use.cublas_workspace_config = machine->cublas_workspace_config;
  return workspaces_of(machine->generation, use).allocated();
}

std::optional<Bytes> context_of(const PlanOptions& options) {
  const std::optional<MegatronMachine> machine = machine_of(options);
  if (!machine || !cuda_context(machine->generation)) return std::nullopt;
  LibraryUse use;
  use.communicators = communicators(options.setup);
  use.channels = kNvlinkChannels;
  return workspaces_of(machine->generation, use).outside();
}

std::vector<Explanation> explain_device(const PlanOptions& options, const Planned& planned) {
  if (planned.terms) return explain_terms(*planned.terms);
  const Catalog& worst = planned.kinds[planned.report.worst].catalog;
  if (options.engine == Engine::paper && !holds_experts(worst)) return explain_paper(worst, options.setup);
  if (options.engine == Engine::paper) {
    const auto [others, experts] = split_by_data_axis(worst);
    return together(explain_paper(others, options.setup), explain_paper(experts, expert_setup(options.setup)));
  }
  std::vector<Explanation> lines = explain_shardplan(planned.held, *planned.plan);
  if (!planned.experts) return lines;
  return together(std::move(lines), explain_shardplan(planned.experts->catalog, planned.experts->plan));
}

Model read_planned_model(const PlanOptions& options) {
  Model model;
  if (options.parameters) {
    model.catalog = catalog_from_parameters(parse_parameter_count(*options.parameters));
  } else if (options.megatron) {
    model = options.megatron->model;
  } else {
    model = find_model(options.model);
  }
  return adapted(options, std::move(model));
}

Model adapted(const PlanOptions& options, Model model) {
  if (options.whole_client().profile == Profile::litgpt && model.catalog.family != "litgpt")
    model = litgpt_model(model);
  for (const std::string& glob : options.freeze) {
    if (freeze(model.catalog, glob) == 0) {
      throw ConfigError("--freeze", "", fmt::format("'{}' matches no tensor of {}", glob, model.catalog.name));
    }
  }
  if (options.lora) add_lora(model.catalog, *options.lora);
  if (options.quantize && !has_quantizable(model.catalog)) {
    throw ConfigError("--quantize", "",
                      fmt::format("{} has no frozen weights of linear modules, and quantised ones cannot be trained: "
                                  "expected --lora-rank or --freeze",
                                  model.catalog.name));
  }
  return model;
}

EngineOptions engine_options_of(const PlanOptions& options) {
  EngineOptions engine = options.engine_options;
  engine.gpus_per_node = options.node_gpus();
  engine.fsdp2.gradient_sync = engine.fsdp2.gradient_sync && !options.whole_client().waiting_gradients;
  return engine;
}

DType wire_dtype_of(const PlanOptions& options) {
  const Policy& policy = options.setup.policy;
  switch (options.engine) {
    case Engine::fsdp2:
      return fsdp2_reduce_dtype(policy, options.engine_options.fsdp2);
    case Engine::megatron:
      return options.engine_options.megatron.main_grads_dtype;
    default:
      return policy.wire;
  }
}

Sized size_kind(const PlanOptions& options, const Catalog& catalog) {
  const bool ours = options.engine == Engine::shardplan || options.engine == Engine::paper;
  if (ours && experts_apart(options.setup.parallel) && holds_experts(catalog)) {
    return size_on_two_axes(options, catalog);
  }
  Sized sized{.report = {}, .held = catalog, .plan = {}, .experts = {}, .terms = {}, .uncounted = {}};
  if (!ours) {
    const EngineOptions engine = engine_options_of(options);
    sized.terms = terms_of(options.engine, catalog, options.setup, engine);
    sized.report = report_of(options.engine, catalog, options.setup, *sized.terms);
  } else if (options.engine == Engine::paper) {
    sized.report = report_paper(catalog, options.setup);
  } else {
    sized.plan = make_step_plan(catalog, options.setup);
    sized.report = report_shardplan(catalog, *sized.plan);
    add_snapshots(options, sized);
  }
  return sized;
}

std::vector<RankKind> planned_kinds(const PlanOptions& options, const Model& model) {
  std::vector<RankKind> kinds = kinds_of_ranks(model, options.setup);
  for (RankKind& kind : kinds) {
    // LitGPT's plugin replaces every nn.Linear, the head's too.
    const bool heads = options.whole_client().profile == Profile::litgpt;
    if (options.quantize) quantize(kind.catalog, *options.quantize, heads);
  }
  return kinds;
}

namespace {

// Of AdamW: half of its states, where there is no master.
Bytes second_moments(const DeviceMemory& device) {
  return Bytes{device.optimizer_states.count() / 2};
}

}  // namespace

EngineHolds engine_holds(const PlanOptions& options, const Sized& sized) {
  const DeviceMemory& device = sized.report.ranks.front().device;
  if (sized.terms) {
    return {.computing = classes_held_at(*sized.terms, Span::backward),
            .updating = classes_held_at(*sized.terms, Span::update)};
  }
  PeakMemory held = device.at_peak;
  if (options.engine == Engine::paper) {
    held.parameters = device.parameters;
    held.gradients = device.gradients;
    held.optimizer_states = device.optimizer_states;
    PeakMemory updating = held;
    if (options.client.fresh_gradients) held.gradients = Bytes{};
    if (options.client.roots_at_once) updating.workspace = second_moments(device);
    return {.computing = held, .updating = updating};
  }
  // The arena is one allocation, whatever of it is in use: alignment and packing count too.
  held.workspace = sized.report.ranks.front().arenas->device - sum(held);
  return {.computing = held, .updating = held};
}

ClientSide client_side(const PlanOptions& options, const Model& model, const Catalog& catalog, std::uint64_t stage) {
  return client_of_rank(model, catalog, options.setup, options.whole_client(), stage, machine_of(options));
}

Planned make_planned(const PlanOptions& options) {
  return make_planned(options, read_planned_model(options));
}

Planned make_planned(const PlanOptions& options, Model model) {
  try {
    return plan_and_report(options, std::move(model));
  } catch (const ArithmeticOverflow& error) {
    throw ConfigError(options.parameters ? "--params"
                      : options.megatron ? "--megatron-args"
                                         : options.model,
                      "", fmt::format("is too large to be counted: {}", error.what()));
  }
}

}  // namespace shardplan::memcalc
