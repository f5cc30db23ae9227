#include "planner/explain.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "planner/passage.h"

namespace shardplan {
namespace {

constexpr const char* kStages = "ZeRO, arXiv 1910.02054, sec. 5; docs/memory_model.md, 'Resident bytes'";
constexpr const char* kSlots = "docs/memory_model.md, 'Slots'";

struct RoleSum {
  std::uint64_t elements = 0;
  Bytes bytes;
  std::string dtypes;
};

RoleSum sum_of(const ArenaPlan& arena, BufferRole role) {
  RoleSum sum;
  for (const Array& array : arena.arrays) {
    if (array.role != role) continue;
    sum.elements += array.count * array.elements;
    sum.bytes += array.count * array.bytes;
    const std::string_view dtype = name(array.dtype);
    if (sum.dtypes.find(dtype) != std::string::npos) continue;
    if (!sum.dtypes.empty()) sum.dtypes += ", ";
    sum.dtypes += dtype;
  }
  return sum;
}

std::string report_name(BufferRole role) {
  switch (role) {
    case BufferRole::parameter:
      return "parameters";
    case BufferRole::gradient:
      return "gradients";
    case BufferRole::accumulator:
      return "gradients: accumulator";
    case BufferRole::master:
      return "optimizer states: master";
    case BufferRole::first_moment:
      return "optimizer states: first moment";
    case BufferRole::second_moment:
      return "optimizer states: second moment";
    case BufferRole::ema:
      return "optimizer states: moving average";
    case BufferRole::control:
      return "communication buffers: control";
    case BufferRole::staging:
      return "communication buffers: staging";
    case BufferRole::gathered_parameter:
      return "gathered parameters";
    case BufferRole::contribution:
      return "gradients in flight";
    case BufferRole::partial:
      return "communication buffers: partial sums";
    case BufferRole::values:
      return "values in and out";
    case BufferRole::ring:
      return "ring of blocks";
    case BufferRole::block_records:
      return "records of blocks";
    case BufferRole::passing_parameters:
      return "passing parameters";
    case BufferRole::passing_gradients:
      return "passing gradients";
  }
  return "";
}

Explanation resident_explanation(const Catalog& catalog, const StepPlan& plan, BufferRole role, const RoleSum& sum) {
  Explanation line{.name = report_name(role), .bytes = sum.bytes, .formula = {}, .inputs = {}, .source = kStages};
  if (role == BufferRole::control) {
    line.formula = "64 B x ranks";
    line.inputs = fmt::format("{} ranks", plan.setup.world_size);
    line.source = "docs/memory_model.md, 'Control records'";
    return line;
  }
  if (role == BufferRole::staging) {
    line.formula = "pieces of a shard from every other rank, at most 64 MiB";
    line.inputs = fmt::format("{} shards, {} replicas", plan.layout.shards, plan.layout.replicas);
    line.source = "docs/memory_model.md, 'Staging'";
    return line;
  }
  std::uint64_t padded = 0;
  std::uint64_t tensors = 0;
  for (const LayoutRun& run : plan.layout.runs) {
    for (const BufferLayout& buffer : run.unit.buffers) {
      if (role != BufferRole::parameter && !buffer.trainable) continue;
      padded += run.count * buffer.padded_elements;
      tensors += run.count * buffer.tensor_elements;
    }
  }
  const bool sharded = sum.elements != padded;
  line.formula = sharded ? "shard elements x bytes per element, over all units; shard = padded / shards"
                         : "padded elements x bytes per element, over all units";
  line.inputs = fmt::format("{} elements in {} ({} in tensors + {} of padding{})", with_commas(sum.elements),
                            sum.dtypes, with_commas(tensors), with_commas(padded - tensors),
                            sharded ? fmt::format(", / {} shards", plan.layout.shards) : "");
  if (role == BufferRole::accumulator) line.source = "docs/memory_model.md, 'Gradient accumulation'";
  if (catalog.count_only) line.inputs += "; one flat buffer stands for the model";
  return line;
}

Explanation slot_explanation(const Catalog& catalog, const StepPlan& plan, BufferRole role) {
  Explanation line{.name = report_name(role), .bytes = {}, .formula = {}, .inputs = {}, .source = kSlots};
  std::string units;
  for (const Slot& slot : plan.device.slots) {
    if (slot.role != role || plan.device.peak_moment < slot.begin || plan.device.peak_moment >= slot.end) continue;
    line.bytes += slot.bytes;
    const UnitRun& run = catalog.runs[slot.run];
    units += fmt::format("{}one of {} ({})", units.empty() ? "" : " + ", run.name, in_gb(slot.bytes));
  }
  line.formula = role == BufferRole::partial ? "shard elements x 4 B of each unit in flight"
                                             : "padded elements x bytes per element of each unit held at the peak";
  line.inputs = fmt::format("at the {}: {}", moment_name(catalog, plan, plan.device.peak_moment), units);
  return line;
}

Explanation elsewhere_explanation(const StepPlan& plan, const char* tier, BufferRole role, const RoleSum& sum) {
  Explanation line{.name = fmt::format("{}: {}", tier, report_name(role)),
                   .bytes = sum.bytes,
                   .formula = {},
                   .inputs = {},
                   .source = "docs/memory_model.md, 'Offload'"};
  const BlockPlan& blocks = plan.blocks;
  switch (role) {
    case BufferRole::values:
      line.formula = "512 KiB";
      line.inputs = "initial values and state on their way";
      break;
    case BufferRole::ring:
      line.formula = "slots x bytes of a block of all states, in pages of 4096 B";
      line.inputs = fmt::format("{} slots of {} B, blocks of {} elements", blocks.ring_slots,
                                with_commas(blocks.slot.count()), with_commas(blocks.block_elements));
      break;
    case BufferRole::block_records:
      line.formula = "32 B x blocks";
      line.inputs = fmt::format("{} blocks", with_commas(blocks.blocks));
      break;
    case BufferRole::passing_parameters:
    case BufferRole::passing_gradients:
      line.formula = "the largest unit of every third, each array in pages of 4096 B";
      line.inputs = "slots of whole units: one is in use, one is read ahead, one is written";
      break;
    default:
      line.formula = "elements x bytes per element, over the units that are offloaded";
      line.inputs = fmt::format("{} elements in {}", with_commas(sum.elements), sum.dtypes);
  }
  return line;
}

// What another tier holds; the last line is all of it. `units`: with the slots that units pass through.
void explain_elsewhere(std::vector<Explanation>& lines, const StepPlan& plan, const ArenaPlan& arena, Bytes whole,
                       const char* tier, bool units = true) {
  if (arena.arrays.empty()) return;
  Bytes rest = whole;
  for (const BufferRole role :
       {BufferRole::parameter, BufferRole::gradient, BufferRole::accumulator, BufferRole::master,
        BufferRole::first_moment, BufferRole::second_moment, BufferRole::ema, BufferRole::values, BufferRole::ring,
        BufferRole::block_records, BufferRole::passing_parameters, BufferRole::passing_gradients}) {
    const RoleSum sum = sum_of(arena, role);
    const bool passing = role == BufferRole::passing_parameters || role == BufferRole::passing_gradients;
    if (sum.bytes == Bytes{} || (passing && !units)) continue;
    lines.push_back(elsewhere_explanation(plan, tier, role, sum));
    rest -= sum.bytes;
  }
  constexpr const char* kSource = "docs/memory_model.md, 'Offload'";
  lines.push_back({fmt::format("{}: alignment and shifts", tier), rest, "the next line - the lines above",
                   "pages of 4096 B, k x 4096 per kind of array, 28,672 B for the base of an arena", kSource});
  lines.push_back(
      {fmt::format("{}: all of it", tier), whole, "the lines above", "reserved at the start of the run", kSource});
}

}  // namespace

std::vector<Explanation> explain_shardplan(const Catalog& catalog, const StepPlan& plan) {
  std::vector<Explanation> lines;
  for (const BufferRole role : {BufferRole::parameter, BufferRole::gradient, BufferRole::accumulator,
                                BufferRole::master, BufferRole::first_moment, BufferRole::second_moment,
                                BufferRole::ema, BufferRole::control, BufferRole::staging}) {
    const RoleSum sum = sum_of(plan.device, role);
    if (sum.bytes == Bytes{}) continue;
    if (catalog.count_only && (role == BufferRole::control || role == BufferRole::staging)) continue;
    lines.push_back(resident_explanation(catalog, plan, role, sum));
  }
  if (catalog.count_only) {
    Bytes total;
    for (const Explanation& line : lines) total += line.bytes;
    lines.push_back({"model states", total, "parameters + gradients + optimizer states", "the lines above", kStages});
    explain_elsewhere(lines, plan, plan.pinned, pinned_without_passing_slots(plan), "host", false);
    explain_elsewhere(lines, plan, plan.file, plan.file.bytes, "file");
    return lines;
  }
  for (const BufferRole role : {BufferRole::gathered_parameter, BufferRole::contribution, BufferRole::partial}) {
    Explanation line = slot_explanation(catalog, plan, role);
    if (line.bytes > Bytes{}) lines.push_back(std::move(line));
  }
  lines.push_back({"alignment, shifts and packing loss", plan.device.bytes - plan.device.live_peak,
                   "arena - live peak: 4 KiB alignment, k x 4096 per kind of array, 28,672 B for the base, gaps",
                   fmt::format("live peak {} B", with_commas(plan.device.live_peak.count())),
                   "docs/memory_model.md, 'The arena'"});
  lines.push_back({"arena", plan.device.bytes, "the lines above", "one allocation at the start of the run",
                   "docs/memory_model.md, 'The arena'"});
  explain_elsewhere(lines, plan, plan.pinned, plan.pinned.bytes, "host");
  explain_elsewhere(lines, plan, plan.file, plan.file.bytes, "file");
  return lines;
}

std::vector<Explanation> explain_paper(const Catalog& catalog, const Setup& setup) {
  const Report report = report_paper(catalog, setup);
  const DeviceMemory& device = report.ranks.front().device;
  const Placements placements = placements_of_stage(setup.stage);
  const Policy& policy = setup.policy;
  const std::uint64_t shards = shard_count(setup);
  const auto line = [&](std::string name, Bytes bytes, Placement placement, std::string per_parameter,
                        std::uint64_t count) {
    const bool sharded = placement == Placement::sharded;
    return Explanation{std::move(name), bytes, fmt::format("psi x {}{}", per_parameter, sharded ? " / N" : ""),
                       fmt::format("psi = {} parameters, N = {}", with_commas(count), shards),
                       "ZeRO, arXiv 1910.02054, sec. 3.1 and 5"};
  };
  const OptimizerStates& optimizer = states_of(setup.optimizer);
  std::string states;
  const auto state = [&](bool kept, const char* what, DType dtype) {
    if (kept) states += fmt::format("{}{} B ({})", states.empty() ? "" : " + ", bits(dtype) / 8, what);
  };
  state(policy.master.has_value(), "master", policy.master.value_or(DType::f32));
  state(optimizer.first_moment, "first moment", policy.first_moment);
  state(optimizer.second_moment, "second moment", policy.second_moment);
  if (optimizer.by_shape)
    states += fmt::format("{}what {} keeps by shape", states.empty() ? "" : " + ", optimizer.name);
  state(setup.ema, "moving average", DType::f32);
  const auto per_parameter = [&](DType dtype) { return fmt::format("{} B ({})", bits(dtype) / 8, name(dtype)); };
  const Bytes accumulator = paper_accumulator(catalog, setup);
  std::vector<Explanation> lines{line("parameters", device.parameters, placements.parameter,
                                      per_parameter(policy.parameter), parameter_elements(catalog)),
                                 line("gradients", device.gradients - accumulator, placements.gradient,
                                      per_parameter(policy.gradient), trainable_elements(catalog))};
  if (accumulator > Bytes{}) {
    const bool split = resolved_cadence(setup) == Cadence::micro_batch;
    lines.push_back(line("gradients: accumulator", accumulator, split ? Placement::sharded : Placement::replicated,
                         per_parameter(policy.gradient_accumulator), trainable_elements(catalog)));
  }
  lines.push_back(line("optimizer states", device.optimizer_states, placements.optimizer_state,
                       states.empty() ? "0 B (no state)" : fmt::format("({})", states), trainable_elements(catalog)));
  lines.push_back({"model states", device.model_states(), "the lines above", "parameters, gradients, optimizer states",
                   "ZeRO, arXiv 1910.02054, table 1"});
  const auto fixed = [](const Tensor& tensor) { return tensor.dtype.has_value(); };
  const bool some_fixed = std::any_of(catalog.runs.begin(), catalog.runs.end(), [&](const UnitRun& run) {
    return std::any_of(run.tensors.begin(), run.tensors.end(), fixed);
  });
  for (Explanation& explanation : lines) {
    if (some_fixed) explanation.formula += "; tensors whose dtype the model fixes count in theirs";
  }
  return lines;
}

namespace {

// When parameters are gathered, in words.
std::string gathers_words(const Traffic& traffic, const Setup& setup, Engine engine) {
  if (traffic.gathers == 2 * setup.accumulation) return "forward and backward of each of A micro-batches";
  if (engine != Engine::fsdp2) return "once after the update";
  return traffic.gathers > 1 ? "forward of each of A micro-batches, and kept for its backward"
                             : "once in a step, and kept to its end";
}

}  // namespace

std::vector<Explanation> explain_traffic(const Catalog& catalog, const Setup& setup, const Report& report) {
  const std::string inputs =
      fmt::format("N = {}, A = {}, cadence {}, {} parameters", shard_count(setup), setup.accumulation,
                  name(cadence_of(report.traffic, setup)), with_commas(parameter_elements(catalog)));
  const std::string once =
      report.engine == Engine::shardplan ? "(N-1) x shard bytes of each unit" : "psi x bytes x (N-1)/N";
  const bool all_reduced = report.engine == Engine::deepspeed && (setup.stage == 1 || setup.stage == 2);
  constexpr const char* kSource = "ZeRO, arXiv 1910.02054, sec. 7; docs/memory_model.md, 'Wire bytes'";
  std::vector<Explanation> lines;
  const auto add = [&](const char* what, Bytes bytes, std::string formula) {
    if (bytes > Bytes{}) lines.push_back({what, bytes, std::move(formula), inputs, kSource});
  };
  add("reduce gradients", report.traffic.reduce_gradients,
      once + (all_reduced ? ", twice: all-reduced, though a part is kept" : "") +
          (report.traffic.reductions > 1 ? ", each of A micro-batches" : ""));
  add("reduce among replicas", report.traffic.reduce_among_replicas,
      "fp32 partial sums: the shard's other parts to their owners, the own part's sum to R-1 others");
  add("gather gradients", report.traffic.gather_gradients, once);
  add("gather parameters", report.traffic.gather_parameters,
      once + ", " + gathers_words(report.traffic, setup, report.engine));
  lines.push_back({"sent per rank and step", report.traffic.total(), "the lines above",
                   fmt::format("ZeRO's own figure for {} parameters without padding: {} B",
                               with_commas(parameter_elements(catalog)), with_commas(report.traffic.textbook.count())),
                   kSource});
  return lines;
}

}  // namespace shardplan
