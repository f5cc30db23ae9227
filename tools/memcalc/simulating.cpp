#include "tools/memcalc/simulating.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "planner/activations/module_rows.h"
#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/read_model.h"
#include "tools/memcalc/text_parts.h"
#include "tools/report/stage_chart.h"
#include "tools/simulate/fault_spec.h"
#include "tools/simulate/observers.h"

namespace shardplan::memcalc {
namespace {

// Each has a stack of its own, which takes two of the 65,530 mappings that Linux lets a process have (vm.max_map_count).
constexpr std::uint64_t kMostRanks = 32'000;
constexpr std::uint64_t kDefaultSequence = 2048;

std::uint64_t sequence_of(const Model& model, std::vector<std::string>& notes) {
  std::uint64_t sequence = kDefaultSequence;
  const std::uint64_t positions = model.architecture.max_positions;
  if (positions > 0) sequence = std::min(sequence, positions);
  notes.push_back(fmt::format("no --seq: taken as {}", sequence));
  return sequence;
}

Work work_of(const PlanOptions& options, std::uint64_t sequence) {
  return {.tokens = checked_multiply(options.micro_batch, sequence),
          .sequence = sequence,
          .compute = options.setup.policy.compute,
          .gradient = options.setup.policy.gradient,
          .samples = static_cast<double>(options.micro_batch)};
}

SimulationOptions simulation_options(const Simulated& simulated) {
  SimulationOptions options{
      .cluster = simulated.cluster, .work = simulated.work, .gpus_per_node = simulated.gpus_per_node};
  options.work.rows = &simulated.rows;
  if (simulated.client) options.client = &*simulated.client;
  return options;
}

std::ofstream open_for_writing(const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  if (!file) throw IoError(path, 0, errno, "cannot be opened for writing");
  return file;
}

void close(std::ofstream& file, const std::string& path) {
  file.close();
  if (!file) throw IoError(path, 0, errno, "cannot be written");
}

report::MemoryByClass memory_at_peak(const RankReport& rank) {
  const PeakMemory& at_peak = rank.device.at_peak;
  report::MemoryByClass memory;
  memory[report::MemoryClass::parameters] = at_peak.parameters.value_or(Bytes{});
  memory[report::MemoryClass::gathered_parameters] = at_peak.gathered_parameters.value_or(Bytes{});
  memory[report::MemoryClass::gradients] = at_peak.gradients.value_or(Bytes{});
  memory[report::MemoryClass::optimizer_states] = at_peak.optimizer_states.value_or(Bytes{});
  memory[report::MemoryClass::communication_buffers] = at_peak.communication_buffers.value_or(Bytes{});
  // All that is not the engine's, and what its arena leaves unused.
  memory[report::MemoryClass::activations] =
      at_peak.activations.value_or(Bytes{}) + at_peak.loss.value_or(Bytes{}) + at_peak.workspace.value_or(Bytes{});
  return memory;
}

std::string subtitle(const Simulated& simulated) {
  const Setup& setup = simulated.options.setup;
  return fmt::format("{} GPUs of {}, {}, {}, {} per GPU and micro-batch", with_commas(setup.world_size),
                     simulated.cluster.name, setup.policy.name, states_of(setup.optimizer).name,
                     samples_text(simulated.stages[0].planned, simulated.options.whole_client()));
}

std::string stages_svg(const Simulated& simulated) {
  report::StageChart chart{.title = fmt::format("{}: ZeRO stages 0 to 3", simulated.stages[0].planned.catalog.name),
                           .subtitle = subtitle(simulated)};
  if (simulated.stages[0].planned.gpu) chart.capacity = simulated.stages[0].planned.gpu->bytes;
  for (const SimulatedStage& stage : simulated.stages) {
    const SimulatedRank& rank = slowest(stage.simulation);
    const int number = stage.planned.plan->setup.stage;
    chart.bars.push_back({.label = fmt::format("stage {}", number),
                          .note = number == 0 ? "as DDP" : "",
                          .memory = memory_at_peak(stage.planned.worst()),
                          .sent = rank.sent,
                          .compute_seconds = rank.compute_seconds,
                          .exposed_seconds = rank.exposed_seconds,
                          .waiting_seconds = rank.waiting_seconds + rank.other_seconds});
  }
  return stage_chart(chart);
}

std::string memory_svg(const Simulated& simulated, const MemoryObserver& memory) {
  const Planned& planned = simulated.stages[0].planned;
  report::MemoryChart chart = memory.chart();
  chart.title = fmt::format("{}, ZeRO stage {}: memory of one GPU over a step", planned.catalog.name,
                            simulated.options.setup.stage);
  chart.subtitle = subtitle(simulated);
  chart.peak_at = planned.worst().device.peak_at;
  if (planned.gpu) chart.capacity = planned.gpu->bytes;
  return memory_chart(chart);
}

// What each rank does where nothing goes wrong.
std::vector<FaultRange> ranges_of(const Simulation& undisturbed) {
  std::vector<FaultRange> ranges;
  for (const SimulatedRank& rank : undisturbed.ranks) {
    ranges.push_back({rank.outcome.operations, rank.outcome.collectives, rank.peak_allocated});
  }
  return ranges;
}

void require_simulable(const PlanOptions& options, const SimulateOptions& simulate) {
  if (options.parameters) throw ConfigError("--params", "", "has no units to simulate: name a model");
  if (options.engine != Engine::shardplan) throw ConfigError("--engine", "", "only shardplan can be simulated");
  if (options.lora || options.quantize) {
    throw ConfigError(options.lora ? "--lora-rank" : "--quantize", "",
                      "adapters and quantised weights cannot be simulated: only what the model computes is priced");
  }
  if (total_ranks(options.setup) != data_parallel(options.setup) || experts_apart(options.setup.parallel)) {
    throw ConfigError(
        "--tp", "",
        "only the data axis can be simulated: expected no --tp, --pp, --cp, --ep or --etp (memcalc plan sizes them)");
  }
  if (options.setup.world_size > kMostRanks) {
    throw ConfigError("--gpus", "", fmt::format("expected at most {} to simulate", kMostRanks));
  }
  if (simulate.compare_stages && simulate.trace) {
    throw ConfigError("--trace", "", "is of one stage: leave out --compare-stages");
  }
}

Model simulated_model(const PlanOptions& options) {
  Model model = options.megatron ? options.megatron->model : find_model(options.model);
  for (const std::string& glob : options.freeze) freeze(model.catalog, glob);
  return model;
}

// What is taken of the links to host memory and to files.
void add_links(const Offload& offload, Simulated& simulated) {
  const Cluster& cluster = simulated.cluster;
  if (cluster.host.bytes_per_second <= 0) {
    throw ConfigError("--cluster", "",
                      fmt::format("of {} no link to host memory is known: expected a file with host.bytes_per_second",
                                  cluster.gpu.name));
  }
  simulated.notes.push_back(fmt::format("host memory: {:.1f} GB/s each way per GPU, {:.0f} % of its link",
                                        cluster.host.rate() / 1e9, cluster.host.efficiency * 100));
  if (!offload.any_in_file()) return;
  simulated.notes.push_back(fmt::format(
      "files: {:.1f} GB/s read and {:.1f} GB/s written per GPU, at the same time (disk, in a --cluster file)",
      cluster.disk.read_bytes_per_second / 1e9, cluster.disk.write_bytes_per_second / 1e9));
}

// Everything but the stages.
Simulated understood(const PlanOptions& options, const SimulateOptions& simulate, const Model& model) {
  Simulated simulated;
  simulated.options = options;
  simulated.notes = options.notes;
  simulated.cluster = choose_cluster(options, simulate.cluster, simulated.notes);
  if (!options.gpu) simulated.options.gpu = simulated.cluster.gpu.name;
  // What reads no text of its own has as many tokens as its images say, where its forward is known.
  if (!options.sequence && model.architecture.vocabulary > 0)
    simulated.options.sequence = sequence_of(model, simulated.notes);
  simulated.rows = rows_of_modules(model, options.setup, simulated.options.whole_client());
  if (!simulated.options.sequence && simulated.rows.empty())
    simulated.options.sequence = sequence_of(model, simulated.notes);
  simulated.work = work_of(options, simulated.options.sequence.value_or(0));
  simulated.gpus_per_node = options.gpus_per_node.value_or(simulated.cluster.gpus_per_node);
  const RecomputeKind recompute = options.client.recompute;
  if (recompute != RecomputeKind::none && recompute != RecomputeKind::full) {
    simulated.notes.push_back(fmt::format("recompute {} is in the memory and not in the times",
                                          recompute_words(recompute, options.client.recompute_every)));
  }
  if (options.setup.offload.any()) add_links(options.setup.offload, simulated);
  return simulated;
}

void add_notes_of_plan(const Planned& planned, std::vector<std::string>& notes) {
  for (const std::string& note : planned.report.notes) {
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
  }
}

// Plans each stage, and what is to go wrong in it.
void add_stages(const SimulateOptions& simulate, const Model& model, Simulated& simulated,
                const std::function<void(const std::string&)>& progress) {
  const int first = simulate.compare_stages ? 0 : simulated.options.setup.stage;
  const int last = simulate.compare_stages ? 3 : first;
  for (int stage = first; stage <= last; ++stage) {
    PlanOptions of_stage = simulated.options;
    of_stage.setup.stage = stage;
    SimulatedStage& result = simulated.stages.emplace_back();
    result.planned = make_planned(of_stage);
    add_notes_of_plan(result.planned, simulated.notes);
    if (!simulated.client && result.planned.worst().device.peak_allocated) {
      simulated.client = client_memory(model, of_stage.setup, of_stage.whole_client(), machine_of(of_stage));
    }
    const StepPlan& plan = *result.planned.plan;
    result.faults = parse_faults(simulate.faults, static_cast<int>(plan.setup.world_size), simulate.seed, [&] {
      progress(fmt::format("simulating stage {} without faults, to choose among what happens", stage));
      return ranges_of(shardplan::simulate(model, plan, simulation_options(simulated)));
    });
  }
}

// Nothing is written before everything that was asked for has been understood.
void run_stages(const SimulateOptions& simulate, const Model& model, Simulated& simulated,
                const std::function<void(const std::string&)>& progress) {
  std::optional<std::ofstream> trace_file;
  std::optional<std::ofstream> plot_file;
  std::optional<PerfettoObserver> perfetto;
  MemoryObserver memory(0);
  Listeners listeners;
  if (simulate.trace) {
    trace_file = open_for_writing(*simulate.trace);
    perfetto.emplace(*trace_file, static_cast<int>(simulated.options.setup.world_size),
                     simulated.stages[0].planned.plan->file.bytes > Bytes{});
    listeners.add(&*perfetto);
  }
  if (simulate.plot) plot_file = open_for_writing(*simulate.plot);
  if (simulate.plot && !simulate.compare_stages) listeners.add(&memory);

  for (SimulatedStage& stage : simulated.stages) {
    const StepPlan& plan = *stage.planned.plan;
    progress(fmt::format("simulating stage {} on {} ranks", plan.setup.stage, with_commas(plan.setup.world_size)));
    SimulationOptions of_stage = simulation_options(simulated);
    of_stage.faults = stage.faults;
    if (simulate.trace || simulate.plot) of_stage.trace = &listeners;
    stage.simulation = shardplan::simulate(model, plan, of_stage);
  }
  if (perfetto) {
    perfetto->finish();
    close(*trace_file, *simulate.trace);
  }
  if (simulate.plot) {
    *plot_file << (simulate.compare_stages ? stages_svg(simulated) : memory_svg(simulated, memory));
    close(*plot_file, *simulate.plot);
  }
}

}  // namespace

Cluster choose_cluster(const PlanOptions& options, const std::optional<std::string>& wanted,
                       std::vector<std::string>& notes) {
  const std::vector<Gpu> gpus = gpu_table(options.gpu_files);
  const bool named = options.gpu && !is_capacity(*options.gpu);
  if (wanted) {
    Cluster cluster = require_cluster(*wanted, gpus);
    if (named && find_gpu(gpus, *options.gpu).name != cluster.gpu.name) {
      throw ConfigError(
          "--gpu", "",
          fmt::format("the cluster {} has {}: leave out --gpu or --cluster, or say the size of the memory "
                      "(80GiB)",
                      cluster.name, cluster.gpu.name));
    }
    return cluster;
  }
  if (named) return cluster_for(find_gpu(gpus, *options.gpu), gpus);
  Cluster cluster = require_cluster(std::string(kDefaultCluster), gpus);
  notes.push_back(
      fmt::format("{}: taken as {} in nodes of {} with NVLink and {:.0f} Gbit/s per GPU{}",
                  options.gpu ? fmt::format("--gpu {} is a size, no --cluster", *options.gpu) : "no --cluster or --gpu",
                  cluster.gpu.name, cluster.gpus_per_node, cluster.network.bytes_per_second * 8 / 1e9,
                  options.gpu ? ", with that memory" : ""));
  return cluster;
}

std::vector<std::size_t> stragglers_of(const Simulation& simulation) {
  double most = 0;
  for (const SimulatedRank& rank : simulation.ranks) {
    if (!rank.error.empty()) return {};
    most = std::max(most, rank.waiting_seconds);
  }
  std::vector<std::size_t> stragglers;
  for (std::size_t i = 0; i < simulation.ranks.size(); ++i) {
    const double waiting = simulation.ranks[i].waiting_seconds;
    if (most - waiting > 0.05 * simulation.step_seconds && waiting < most / 2) stragglers.push_back(i);
  }
  return stragglers;
}

const SimulatedRank& slowest(const Simulation& simulation) {
  const auto key = [](const SimulatedRank& rank) { return std::pair(rank.step_seconds, -rank.waiting_seconds); };
  return *std::max_element(simulation.ranks.begin(), simulation.ranks.end(),
                           [&](const SimulatedRank& a, const SimulatedRank& b) { return key(a) < key(b); });
}

Simulated make_simulated(const PlanOptions& options, const SimulateOptions& simulate,
                         const std::function<void(const std::string&)>& progress) {
  require_simulable(options, simulate);
  const Model model = simulated_model(options);
  Simulated simulated = understood(options, simulate, model);
  add_stages(simulate, model, simulated, progress);
  run_stages(simulate, model, simulated, progress);
  return simulated;
}

}  // namespace shardplan::memcalc
