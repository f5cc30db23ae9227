#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/text.h"
#include "tools/memcalc/output.h"
#include "tools/memcalc/text_parts.h"
#include "tools/simulate/fault_spec.h"

namespace shardplan::memcalc {
namespace {

std::string time_text(double seconds) {
  if (seconds >= 1 || seconds == 0) return fmt::format("{:.3f} s", seconds);
  return seconds >= 1e-3 ? fmt::format("{:.2f} ms", seconds * 1e3) : fmt::format("{:.2f} us", seconds * 1e6);
}

std::string stage_line(const SimulatedStage& stage) {
  const SimulatedRank& rank = slowest(stage.simulation);
  return fmt::format("  {:<8}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}\n", stage.planned.plan->setup.stage,
                     in_gb(stage.planned.plan->device.bytes), in_gb(rank.sent), time_text(rank.step_seconds),
                     time_text(rank.compute_seconds), time_text(rank.exposed_seconds),
                     time_text(rank.waiting_seconds + rank.other_seconds));
}

std::string errors_text(const Simulation& simulation) {
  constexpr std::size_t most = 8;
  std::string text;
  std::size_t shown = 0;
  std::size_t all = 0;
  for (std::size_t rank = 0; rank < simulation.ranks.size(); ++rank) {
    const SimulatedRank& result = simulation.ranks[rank];
    if (result.error.empty()) continue;
    ++all;
    if (++shown <= most) {
      text += fmt::format("  rank {:<5} at {:>10}: {}\n", rank, time_text(result.outcome.seconds), result.error);
    }
  }
  if (all > most) text += fmt::format("  and {} more ranks\n", all - most);
  return text;
}

std::string times_text(const Simulation& simulation) {
  const SimulatedRank& rank = slowest(simulation);
  const auto [least, most] =
      std::minmax_element(simulation.ranks.begin(), simulation.ranks.end(),
                          [](const auto& a, const auto& b) { return a.step_seconds < b.step_seconds; });
  std::string text = fmt::format("step                  {:>12}   of the slowest rank", time_text(rank.step_seconds));
  if (most->step_seconds > least->step_seconds) {
    text += fmt::format("; the fastest took {}", time_text(least->step_seconds));
  }
  text += fmt::format("\n  computing           {:>12}\n", time_text(rank.compute_seconds));
  text += fmt::format("  exposed             {:>12}   communication that no computation hides\n",
                      time_text(rank.exposed_seconds));
  text += fmt::format("  waiting             {:>12}   for slower ranks to come to a collective\n",
                      time_text(rank.waiting_seconds));
  if (rank.other_seconds > 0) {
    text += fmt::format("  other               {:>12}   for the host, or for copies beside communication\n",
                        time_text(rank.other_seconds));
  }
  text += fmt::format("communication         {:>12}   on the wire\n", time_text(rank.communication_seconds));
  text += fmt::format("  hidden              {:>12}   behind computation\n", time_text(rank.hidden_seconds()));
  const std::vector<std::size_t> stragglers = stragglers_of(simulation);
  if (!stragglers.empty()) {
    constexpr std::size_t most_named = 8;
    const auto end = stragglers.begin() + static_cast<std::ptrdiff_t>(std::min(stragglers.size(), most_named));
    text += fmt::format(
        "others wait for       rank {}{}\n", fmt::join(stragglers.begin(), end, ", "),
        stragglers.size() > most_named ? fmt::format(" and {} more", stragglers.size() - most_named) : std::string());
  }
  return text;
}

// Arena and client together, where the client's tensors were booked.
std::string peak_text(const SimulatedStage& stage) {
  const DeviceMemory& device = stage.planned.worst().device;
  const auto& ranks = stage.simulation.ranks;
  std::string text;
  if (device.peak_allocated) {
    const auto [least, most] = std::minmax_element(
        ranks.begin(), ranks.end(), [](const auto& a, const auto& b) { return a.peak_allocated < b.peak_allocated; });
    const bool equal =
        least->peak_allocated == *device.peak_allocated && most->peak_allocated == *device.peak_allocated;
    text += fmt::format("allocated             {:>12}   with activations, the most of any rank; planned {}{}\n",
                        in_gb(most->peak_allocated), in_gb(*device.peak_allocated),
                        equal ? ", the same on every rank" : "");
  }
  return text + fmt::format("  most is in use at                  {}\n", device.peak_at);
}

// One line of a tier where something is offloaded.
std::string tier_text(const Simulation& simulation, const char* tier, Bytes SimulatedRank::* what, Bytes planned) {
  if (planned == Bytes{}) return {};
  const auto [least, most] = std::minmax_element(simulation.ranks.begin(), simulation.ranks.end(),
                                                 [&](const auto& a, const auto& b) { return a.*what < b.*what; });
  const bool equal = (*least).*what == planned && (*most).*what == planned;
  return fmt::format("{:<22}{:>12}   the most of any rank; planned {}{}\n", tier, in_gb((*most).*what), in_gb(planned),
                     equal ? ", the same on every rank" : "");
}

std::string offload_text(const SimulatedStage& stage) {
  const StepPlan& plan = *stage.planned.plan;
  return tier_text(stage.simulation, "pinned host memory", &SimulatedRank::host_arena, plan.pinned.bytes) +
         tier_text(stage.simulation, "file", &SimulatedRank::file, plan.file.bytes);
}

std::string one_stage(const SimulatedStage& stage) {
  const Simulation& simulation = stage.simulation;
  const bool ended = std::all_of(simulation.ranks.begin(), simulation.ranks.end(),
                                 [](const SimulatedRank& rank) { return rank.error.empty(); });
  std::string text = ended ? times_text(simulation) : "The step did not end.\n";
  const Bytes planned = stage.planned.plan->device.bytes;
  const auto [smallest, largest] = std::minmax_element(simulation.ranks.begin(), simulation.ranks.end(),
                                                       [](const auto& a, const auto& b) { return a.arena < b.arena; });
  const bool equal = largest->arena == planned && smallest->arena == planned;
  text += fmt::format("\ndevice arena          {:>12}   the most of any rank; planned {}{}\n", in_gb(largest->arena),
                      in_gb(planned), equal ? ", the same on every rank" : "");
  text += peak_text(stage);
  text += offload_text(stage);
  text += fmt::format("sent                  {:>12}   each rank and step\n", in_gb(slowest(simulation).sent));
  text += fmt::format("  inside nodes        {:>12}   all ranks\n", in_gb(simulation.sent.node));
  text += fmt::format("  over the network    {:>12}   all ranks\n", in_gb(simulation.sent.network));
  text += fmt::format("\n{} kernels and collectives on {} ranks, simulated in {}\n", with_commas(simulation.operations),
                      with_commas(simulation.ranks.size()), time_text(simulation.wall_seconds));
  return text;
}

}  // namespace

std::string simulate_text(const Simulated& simulated) {
  const Setup& setup = simulated.options.setup;
  const Catalog& catalog = simulated.stages[0].planned.catalog;
  std::string text = fmt::format("{}  {} parameters\n{} GPUs of {} in nodes of {}, {}, {} per GPU and micro-batch\n\n",
                                 catalog.name, with_commas(parameter_elements(catalog)), with_commas(setup.world_size),
                                 simulated.cluster.name, simulated.gpus_per_node, setup.policy.name,
                                 samples_text(simulated.stages[0].planned, simulated.options.whole_client()));
  if (simulated.stages.size() == 1) {
    text += one_stage(simulated.stages[0]);
  } else {
    text += fmt::format("  {:<8}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}\n", "stage", "arena", "sent", "step", "computing",
                        "exposed", "waiting");
    for (const SimulatedStage& stage : simulated.stages) text += stage_line(stage);
  }
  for (const SimulatedStage& stage : simulated.stages) {
    for (std::size_t i = 0; i < stage.faults.size(); ++i) {
      text += fmt::format("\nfault, stage {}: {}{}\n", stage.planned.plan->setup.stage, describe(stage.faults[i]),
                          stage.simulation.happened[i] ? "" : ": did not happen");
    }
    if (stage.planned.fits == false && simulated.stages.size() == 1) {
      text += fmt::format("It does not fit: {} has {}\n", stage.planned.gpu->name, in_gb(stage.planned.gpu->bytes));
    }
    const std::string errors = errors_text(stage.simulation);
    if (!errors.empty()) text += fmt::format("errors, stage {}:\n{}", stage.planned.plan->setup.stage, errors);
  }
  for (const std::string& note : simulated.notes) text += fmt::format("\nnote: {}", note);
  if (!simulated.notes.empty()) text += "\n";
  return text;
}

}  // namespace shardplan::memcalc
