#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "tools/memcalc/error_bar.h"
#include "tools/memcalc/output.h"
#include "tools/memcalc/text_parts.h"
#include "tools/memcalc/uncounted.h"

namespace shardplan::memcalc {
namespace {

std::string both(Bytes bytes) {
  return fmt::format("{} ({})", in_gb(bytes), in_gib(bytes));
}

struct Line {
  const char* name;
  std::optional<Bytes> resident;
  std::optional<Bytes> at_peak;
  std::string what;
};

std::string held(bool sharded, std::uint64_t shards) {
  return sharded ? fmt::format("1/{} of each unit", shards) : "whole";
}

std::string dtypes_of_states(const Setup& setup) {
  const OptimizerStates& optimizer = states_of(setup.optimizer);
  std::string text;
  std::optional<DType> last;
  const auto add = [&](bool kept, const char* what, DType dtype) {
    if (!kept) return;
    if (!text.empty()) text += ", ";
    if (last != dtype) text += fmt::format("{} ", name(dtype));
    text += what;
    last = dtype;
  };
  add(setup.policy.master.has_value(), "master", setup.policy.master.value_or(DType::f32));
  add(optimizer.first_moment, optimizer.second_moment ? "first moment" : "momentum", setup.policy.first_moment);
  add(optimizer.second_moment, "second moment", setup.policy.second_moment);
  if (optimizer.by_shape) text += fmt::format("{}what {} keeps", text.empty() ? "" : ", ", optimizer.name);
  add(setup.ema, "moving average", DType::f32);
  return text.empty() ? "no state" : text;
}

// With A > 1, where the gradient is not the accumulator itself.
std::string accumulator_words(const Setup& setup) {
  if (setup.accumulation == 1 || setup.policy.gradient_accumulator == setup.policy.gradient) return {};
  return fmt::format(" + {} accumulator", name(setup.policy.gradient_accumulator));
}

std::string communication_words(const Planned& planned) {
  std::string words = "agreement records";
  for (const Array& array : planned.plan->device.arrays) {
    if (array.role == BufferRole::staging) words += ", staging";
  }
  if (planned.plan->layout.replicas > 1) words += ", sums on their way through the replicas";
  return words;
}

// What an engine's terms of one class are at the peak: their names without the class.
std::string terms_words(const EngineTerms& terms, MemoryClass memory_class) {
  std::string words;
  const Span peak = peak_moment(terms);
  for (const Term& term : terms.terms) {
    if (term.tier != Tier::device || term.memory_class != memory_class || !held(term.span, peak)) continue;
    const std::size_t colon = term.name.find(": ");
    const std::string word = colon == std::string::npos ? term.name : term.name.substr(colon + 2);
    if (word == name(memory_class)) continue;
    words += fmt::format("{}{}", words.empty() ? "" : ", ", word);
  }
  const bool elsewhere = std::any_of(terms.terms.begin(), terms.terms.end(), [&](const Term& term) {
    return term.tier != Tier::device && term.memory_class == memory_class;
  });
  if (words.empty() && elsewhere && memory_class != MemoryClass::communication_buffers) return "offloaded";
  return words;
}

std::vector<Line> lines_of_terms(const Planned& planned) {
  const DeviceMemory& device = planned.worst().device;
  const PeakMemory& peak = device.at_peak;
  const auto words = [&](MemoryClass memory_class) { return terms_words(*planned.terms, memory_class); };
  std::vector<Line> lines{
      {"parameters", device.parameters, peak.parameters, words(MemoryClass::parameters)},
      {"gradients", device.gradients, peak.gradients, words(MemoryClass::gradients)},
      {"optimizer states", device.optimizer_states, peak.optimizer_states, words(MemoryClass::optimizer_states)}};
  for (const auto& [what, memory_class, bytes] :
       {std::tuple{"gathered parameters", MemoryClass::gathered_parameters, peak.gathered_parameters},
        {"communication buffers", MemoryClass::communication_buffers, peak.communication_buffers}}) {
    const std::string said = words(memory_class);
    if (bytes && !said.empty()) lines.push_back({what, std::nullopt, bytes, said});
  }
  return lines;
}

std::vector<Line> device_lines(const PlanOptions& options, const Planned& planned) {
  if (planned.terms) return lines_of_terms(planned);
  const Setup& setup = options.setup;
  const DeviceMemory& device = planned.worst().device;
  const PeakMemory& peak = device.at_peak;
  const std::uint64_t shards = shard_count(setup);
  const Placements placements = placements_of_stage(setup.stage);
  const auto sharded = [&](Placement placement) { return held(placement == Placement::sharded && shards > 1, shards); };
  std::vector<Line> lines{
      {"parameters", device.parameters, peak.parameters,
       fmt::format("{}, {}", name(setup.policy.parameter), sharded(placements.parameter))},
      {"gradients", device.gradients, peak.gradients,
       fmt::format("{}{}, {}", name(setup.policy.gradient), accumulator_words(setup), sharded(placements.gradient))},
      {"optimizer states", device.optimizer_states, peak.optimizer_states,
       fmt::format("{}, {}", dtypes_of_states(setup), sharded(placements.optimizer_state))}};
  if (peak.gathered_parameters.value_or(Bytes{}) > Bytes{}) {
    lines.push_back({"gathered parameters", Bytes{}, peak.gathered_parameters, "whole units, while they compute"});
  }
  if (peak.communication_buffers) {
    lines.push_back({"communication buffers", std::nullopt, peak.communication_buffers, communication_words(planned)});
  }
  return lines;
}

// An engine's host memory and files, where it has any; the peak at the start is a node's.
std::string host_lines(const RankReport& rank, const Style& style) {
  std::string text;
  const auto add = [&](const char* what, std::optional<Bytes> bytes, const char* words) {
    if (bytes.value_or(Bytes{}) == Bytes{}) return;
    text += fmt::format("  {:<22}{:>24}   {}{}{}\n", what, in_gb(*bytes), style.dim, words, style.off);
  };
  add("host, pinned", rank.host.pinned, "of each rank");
  add("host, pageable", rank.host.pageable, "of each rank");
  add("files", rank.file, "of each rank");
  add("host, at the start", rank.host.initialization_peak, "of all ranks of a node");
  return text;
}

std::string cell(std::optional<Bytes> bytes) {
  if (!bytes) return "";
  return *bytes == Bytes{} ? "-" : in_gb(*bytes);
}

std::string whose(const RankReport& rank) {
  const std::string role = rank.role == "all" ? "" : " (" + rank.role + ")";
  return (rank.count == 1 ? "the GPU" : fmt::format("each of {} GPUs", with_commas(rank.count))) + role;
}

// Of several kinds of ranks, what each holds in all; the table has the worst one's parts.
std::string kinds_table(const Planned& planned, const Style& style) {
  const std::vector<RankReport>& ranks = planned.report.ranks;
  if (ranks.size() == 1) return {};
  std::string text = fmt::format("\n{}{:<24}{:>12}{:>16}{:>16}{}\n", style.dim, "kind of rank", "GPUs", "parameters",
                                 "model states", style.off);
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    text +=
        fmt::format("  {:<22}{:>12}{:>16}{:>16}\n", ranks[i].role, with_commas(ranks[i].count),
                    with_commas(parameter_elements(planned.kinds[i].catalog)), in_gb(ranks[i].device.model_states()));
  }
  return text;
}

// Nothing where no measured run is of this engine and this client's code.
std::string error_bar_line(const PlanOptions& options, const DeviceMemory& device, const Style& style) {
  const MeasuredErrors* errors =
      measured_errors(options.engine, options.whole_client().profile, ErrorField::peak_allocated);
  if (errors == nullptr) return {};
  const ErrorBar bar = error_bar(*device.peak_allocated, *errors);
  return fmt::format("  {:<22}{:>24}   {}nine of ten of {} measured runs were within {} % of their plans{}\n",
                     "  error bar", fmt::format("{} to {}", in_gb(bar.low), in_gb(bar.high)), style.dim, errors->rows,
                     errors->p90_abs_percent, style.off);
}

// What the client holds beside the engine, at the worst moment of the two together.
std::string client_lines(const PlanOptions& options, const Planned& planned, const Style& style) {
  const DeviceMemory& device = planned.worst().device;
  if (!device.peak_allocated) {
    const std::string& why = planned.uncounted[planned.report.worst];
    if (!why.empty()) {
      return fmt::format("  {:<22}{:>24}   {}{}{}\n", "activations, loss", "not counted", style.dim, why, style.off);
    }
    return fmt::format("  {:<22}{:>24}\n", "activations, loss",
                       options.sequence ? "not counted" : "not counted: say --seq");
  }
  const ClientSetup client = options.whole_client();
  const PeakMemory& peak = device.at_peak;
  std::string text;
  const auto add = [&](const char* what, std::optional<Bytes> bytes, const std::string& words) {
    text += fmt::format("  {:<22}{:>24}   {}{}{}\n", what, in_gb(bytes.value_or(Bytes{})), style.dim, words, style.off);
  };
  const bool says_load = planned.catalog.active_parameters && client.expert_load != ExpertLoad{};
  add("activations", peak.activations,
      fmt::format("{}, {}, recompute {}{}", name(client.profile), samples_text(planned, client),
                  recompute_words(client.recompute, client.recompute_every),
                  says_load ? fmt::format(", experts: {}", words(client.expert_load)) : ""));
  add("loss", peak.loss,
      fmt::format("logits and what is made of them, {}", loss_words(client.loss, client.loss_chunks)));
  add("workspace", peak.workspace, "of libraries and kernels, tables, the batch");
  text += fmt::format("  {}{:<22}{:>24}{}   {}the peak is at: {}{}\n", style.bold, "peak allocated",
                      in_gb(*device.peak_allocated), style.off, style.dim, device.peak_at, style.off);
  text += error_bar_line(options, device, style);
  if (device.peak_reserved) add("peak reserved", device.peak_reserved, "by torch's allocator, replayed");
  if (device.context) add("context", device.context, "the driver's, and NCCL's buffers");
  if (device.total) {
    text += fmt::format("  {}{:<22}{:>24}{}   {}{}, what nvidia-smi shows{}\n", style.bold, "total",
                        in_gb(*device.total), style.off, style.dim, in_gib(*device.total), style.off);
  }
  return text;
}

std::string table(const PlanOptions& options, const Planned& planned, const Style& style) {
  const RankReport& rank = planned.worst();
  const DeviceMemory& device = rank.device;
  const bool walked = device.live_peak.has_value();
  std::string text = fmt::format("{}{:<24}{:>12}{}{}\n", style.dim, whose(rank), "resident",
                                 walked ? fmt::format("{:>12}", "at peak") : "", style.off);
  for (const Line& line : device_lines(options, planned)) {
    text += fmt::format("  {:<22}{:>12}{}   {}{}{}\n", line.name, cell(line.resident),
                        walked ? fmt::format("{:>12}", cell(line.at_peak)) : "", style.dim, line.what, style.off);
  }
  text += fmt::format("  {:<22}{:>12}{}\n", "", "------------", walked ? "------------" : "");
  text += fmt::format("  {}{:<22}{:>12}{}{}", style.bold, walked ? "model states, peak" : "model states",
                      in_gb(device.model_states()), walked ? fmt::format("{:>12}", in_gb(*device.live_peak)) : "",
                      style.off);
  text += walked && !device.peak_allocated
              ? fmt::format("   {}the peak is at: {}{}\n", style.dim, device.peak_at, style.off)
              : "\n";
  if (rank.arenas) {
    text += fmt::format("  {:<22}{:>24}   {}{}, one allocation at the start{}\n", "device arena",
                        in_gb(rank.arenas->device), style.dim, in_gib(rank.arenas->device), style.off);
    const bool offloaded = rank.arenas->pinned + rank.arenas->file > Bytes{};
    text += fmt::format("  {:<22}{:>24}   {}{}{}\n", "host, file",
                        fmt::format("{}, {}", in_gb(rank.arenas->pinned), in_gb(rank.arenas->file)), style.dim,
                        offloaded ? "pinned memory, and a file for each rank" : "nothing is offloaded", style.off);
    if (rank.arenas->host > Bytes{}) {
      text += fmt::format("  {:<22}{:>24}   {}host memory, for saving in the background{}\n", "snapshot",
                          in_gb(rank.arenas->host), style.dim, style.off);
    }
  }
  if (planned.terms) text += host_lines(rank, style);
  return text + client_lines(options, planned, style);
}

std::string bar(const Planned& planned, const Style& style) {
  constexpr std::uint64_t kWidth = 50;
  const Bytes needed = least_device_bytes(planned.worst());
  const double share = static_cast<double>(needed.count()) / static_cast<double>(planned.gpu->bytes.count());
  const auto filled = static_cast<std::uint64_t>(std::lround(std::min(share, 1.0) * static_cast<double>(kWidth)));
  return fmt::format("{}[{}{}]{} {:.0f} % of {} ({}, {})\n", share > 1 ? style.bad : style.good,
                     std::string(filled, '#'), std::string(kWidth - filled, '.'), style.off, share * 100,
                     planned.gpu->name, in_gb(planned.gpu->bytes), in_gib(planned.gpu->bytes));
}

std::string verdict(const Planned& planned, const Style& style) {
  const RankReport& rank = planned.worst();
  const Bytes needed = least_device_bytes(rank);
  const DeviceMemory& device = rank.device;
  const bool counted = device.peak_allocated.has_value();
  const char* what = device.total           ? "total"
                     : device.peak_reserved ? "memory that is reserved"
                     : counted              ? "peak"
                     : rank.arenas          ? "arena"
                     : device.live_peak     ? "engine's peak"
                                            : "model states";
  std::pair<const char*, Bytes> largest{"parameters", device.parameters};
  for (const auto& [part, bytes] : {std::pair{"gradients", device.gradients},
                                    {"optimizer states", device.optimizer_states},
                                    {"gathered parameters", device.at_peak.gathered_parameters.value_or(Bytes{})},
                                    {"activations", device.at_peak.activations.value_or(Bytes{})},
                                    {"loss", device.at_peak.loss.value_or(Bytes{})},
                                    {"workspace", device.at_peak.workspace.value_or(Bytes{})}}) {
    if (bytes > largest.second) largest = {part, bytes};
  }
  std::string text;
  if (planned.gpu && planned.fits == false) {
    text = fmt::format("{}It does not fit:{} the {} alone is {} more than the GPU has", style.bad, style.off, what,
                       in_gb(needed - planned.gpu->bytes));
  } else if (planned.fits == true) {
    text = fmt::format("{}It fits{} and leaves {}", style.good, style.off, in_gb(planned.gpu->bytes - needed));
  } else if (const std::string unknown = left_out(planned); !unknown.empty()) {
    text = planned.gpu ? fmt::format("{}Whether it fits is not known:{} {}; of {}, the {} leaves {}", style.bold,
                                     style.off, unknown, rank.role, what, in_gb(planned.gpu->bytes - needed))
                       : fmt::format("Each GPU of {} needs {}; {}", rank.role, both(needed), unknown);
  } else if (planned.gpu && counted) {
    text = fmt::format("{}The {} fits{} and leaves {} for {}", style.good, what, style.off,
                       in_gb(planned.gpu->bytes - needed),
                       device.peak_reserved ? "the context, which is not known"
                                            : "the allocator and the context, which are not known");
  } else if (planned.gpu) {
    text = fmt::format("{}The {}{} and leaves {} for activations, which are not yet counted", style.good,
                       rank.device.live_peak && !rank.arenas ? "engine's peak fits"
                       : rank.arenas                         ? "arena fits"
                                                             : "model states fit",
                       style.off, in_gb(planned.gpu->bytes - needed));
  } else {
    text = fmt::format("Each GPU needs {}{}", both(needed), counted ? "" : " and its activations");
  }
  if (largest.second > Bytes{})
    text += fmt::format("; the largest part is the {} ({})", largest.first, in_gb(largest.second));
  return text + ".\n";
}

std::string traffic(const PlanOptions& options, const Planned& planned, const Style& style) {
  const Setup& setup = options.setup;
  const Traffic& sent = planned.report.traffic;
  if (sent.total() == Bytes{}) return {};
  std::string parts;
  for (const auto& [part, bytes] : {std::pair{"gather parameters", sent.gather_parameters},
                                    {"gather gradients", sent.gather_gradients},
                                    {"reduce gradients", sent.reduce_gradients},
                                    {"between replicas", sent.reduce_among_replicas}}) {
    if (bytes > Bytes{}) parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", part, in_gb(bytes));
  }
  std::string text =
      fmt::format("{:<24}{:>12}   {}{}{}\n", "sent per GPU and step", in_gb(sent.total()), style.dim, parts, style.off);
  if (options.engine != Engine::paper && !planned.catalog.count_only) {
    const bool plain = setup.accumulation == 1 && setup.replicate == 1 && !planned.experts &&
                       trainable_elements(planned.held) == parameter_elements(planned.held);
    text += fmt::format("{:<24}{:>12}   {}{}{}\n", "  ZeRO's own figure", in_gb(sent.textbook), style.dim,
                        !plain             ? "its terms for this set-up, without padding"
                        : setup.stage == 3 ? "3 psi (N-1)/N, without padding"
                                           : "2 psi (N-1)/N, without padding",
                        style.off);
  }
  return text;
}

std::string units(const Planned& planned) {
  std::string text = "\nunits\n";
  for (std::size_t r = 0; r < planned.plan->layout.runs.size(); ++r) {
    const UnitRun& run = planned.held.runs[r];
    const LayoutRun& layout = planned.plan->layout.runs[r];
    text += fmt::format("  {:<32}{:>6} x\n", run.numbered ? run.name + ".*" : run.name, run.count);
    for (const BufferLayout& buffer : layout.unit.buffers) {
      text += fmt::format("    {} elements in {}{}, padded to {} (granule {}), shard {}\n",
                          with_commas(buffer.tensor_elements), plural(buffer.tensors.size(), "tensor"),
                          buffer.trainable ? "" : ", frozen", with_commas(buffer.padded_elements), buffer.granule,
                          with_commas(buffer.shard_elements));
    }
  }
  for (const ProgramKind kind :
       {ProgramKind::train_micro_batch, ProgramKind::last_micro_batch, ProgramKind::evaluate, ProgramKind::update}) {
    const Program& program = planned.plan->programs[static_cast<std::size_t>(kind)];
    text += fmt::format("program {}: {} operations\n", name(kind), with_commas(operation_count(program)));
    for (const Segment& segment : program.segments) {
      text += fmt::format("  {:>5} x", segment.count);
      for (const Operation& operation : segment.operations) {
        const std::string_view pass = name(operation.pass);
        text += fmt::format(" {}{}{} {}{}", name(operation.kind), pass.empty() ? "" : " ", pass, operation.unit,
                            operation.scope == Scope::replicas ? " among replicas" : "");
        text += &operation == &segment.operations.back() ? "" : ";";
      }
      text += "\n";
    }
  }
  return text + fmt::format("plan {}\n", planned.plan->hash);
}

}  // namespace

std::string plan_text(const PlanOptions& options, const Planned& planned, const Beside& beside, bool colour) {
  const Style style = style_for(colour);
  std::string text =
      heading(options, planned, style) + "\n" + table(options, planned, style) + kinds_table(planned, style) + "\n";
  if (planned.gpu) text += bar(planned, style);
  text += verdict(planned, style);
  const std::string sent = traffic(options, planned, style);
  if (!sent.empty()) text += "\n" + sent;
  for (const std::string& note : planned.report.notes)
    text += fmt::format("{}note: {}{}\n", style.dim, note, style.off);
  if (beside.comparison) text += comparison_text(options, planned, *beside.comparison, colour);
  if (beside.calibration) text += calibration_text(*beside.calibration, colour);
  if (options.verbose && planned.plan) text += units(planned);
  return text;
}

}  // namespace shardplan::memcalc
