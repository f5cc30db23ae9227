#include "tools/memcalc/evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "planner/activations/module_rows.h"
#include "planner/tensor_split.h"

namespace shardplan::memcalc {
namespace {

// The part of a forward that runs again. Selective: the scores and their product with the values, 4 s of 24 h + 4 s
// operations for each token and feature (Korthikanti et al., arXiv 2205.05198, sec. 5).
double recomputed_part(const ClientSetup& client, const Architecture& architecture) {
  switch (client.recompute) {
    case RecomputeKind::none:
      return 0;
    case RecomputeKind::selective: {
      const auto scores = 4 * static_cast<double>(client.sequence);
      return scores / (24 * static_cast<double>(architecture.hidden) + scores);
    }
    case RecomputeKind::every:
      return 1 / static_cast<double>(client.recompute_every);
    case RecomputeKind::full:
    case RecomputeKind::invert:
    case RecomputeKind::adjoint:
      return 1;
  }
  return 0;
}

}  // namespace

std::string axes_of(const PlanOptions& options) {
  const Setup& setup = options.setup;
  std::string text = fmt::format("zero {}", setup.stage);
  for (const auto& [axis, ranks] : {std::pair{"tp", setup.parallel.tensor},
                                    {"pp", setup.parallel.pipeline},
                                    {"cp", setup.parallel.context},
                                    {"ep", setup.parallel.expert}}) {
    if (ranks > 1) text += fmt::format(", {} {}", axis, ranks);
  }
  if (setup.parallel.virtual_stages > 1) text += fmt::format(", virtual stages {}", setup.parallel.virtual_stages);
  if (setup.parallel.sequence_parallel) text += ", sequence parallel";
  if (setup.replicate > 1) text += fmt::format(", replicate {}", setup.replicate);
  if (options.offload) text += fmt::format(", offload {}", *options.offload);
  text += fmt::format(", micro-batch {}", options.micro_batch);
  if (setup.accumulation > 1) text += fmt::format(" x {}", setup.accumulation);
  if (options.client.recompute != RecomputeKind::none) {
    text += fmt::format(", recompute {}", recompute_words(options.client.recompute, options.client.recompute_every));
  }
  return text;
}

namespace {

// Experts' tensors, or the others.
Catalog part_of(const Catalog& catalog, bool experts) {
  Catalog part = catalog;
  for (UnitRun& run : part.runs) {
    std::erase_if(run.tensors, [&](const Tensor& tensor) { return names_expert(tensor.name) != experts; });
  }
  return part;
}

std::uint64_t number(std::optional<PipelineSchedule> schedule) {
  return schedule ? static_cast<std::uint64_t>(*schedule) + 1 : 0;
}

std::uint64_t number(RecomputeKind recompute, std::uint64_t every) {
  return static_cast<std::uint64_t>(recompute) + 8 * every;
}

std::uint64_t number(LossKind loss, std::uint64_t chunks) {
  return static_cast<std::uint64_t>(loss) + 8 * chunks;
}

// What a rank of our engine and of the textbook holds is never less than an even share of the textbook's states.
bool is_bounded(const PlanOptions& options) {
  const bool ours = options.engine == Engine::shardplan || options.engine == Engine::paper;
  return ours && !options.quantize && !options.setup.optimizer_in_backward;
}

}  // namespace

Evaluator::Evaluator(Model model, Cluster cluster, Ranks ranks)
    : model_(std::move(model)), cluster_(std::move(cluster)), ranks_(ranks), times_(model_, cluster_) {
  const std::vector<ModuleRun>& runs = model_.modules;
  for (const ModuleRun& run : runs) {
    const auto same = [&](const ModuleRun& other) { return other.modules == run.modules; };
    like_.push_back(static_cast<std::size_t>(std::find_if(runs.begin(), runs.end(), same) - runs.begin()));
  }
}

std::vector<std::uint64_t> Evaluator::blocks_of(const UnitRun& run) const {
  std::vector<std::uint64_t> blocks;
  for (std::size_t i = 0; i < like_.size(); ++i) {
    const ModuleRun& modules = model_.modules[i];
    if (!modules.numbered || modules.name != run.name) continue;
    const std::uint64_t first = std::max(modules.first_number, run.first_number);
    const std::uint64_t end = std::min(modules.first_number + modules.count, run.first_number + run.count);
    if (first < end) blocks.insert(blocks.end(), {like_[i], end - first});
  }
  return blocks;
}

bool Evaluator::holds_same(const Catalog& a, const Catalog& b) const {
  return std::equal(
      a.runs.begin(), a.runs.end(), b.runs.begin(), b.runs.end(), [&](const UnitRun& x, const UnitRun& y) {
        return x.name == y.name && x.count == y.count && x.tensors == y.tensors && blocks_of(x) == blocks_of(y);
      });
}

// Equal texts have equal numbers.
std::uint64_t Evaluator::words(const std::string& text) {
  return words_.try_emplace(text, words_.size() + 1).first->second;
}

void Evaluator::find_kinds(const PlanOptions& options, Kinds& found) const {
  try {
    std::vector<RankKind> kinds = planned_kinds(options, model_);
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      const auto same = [&](const Kind& kind) { return holds_same(kind.catalog, kinds[i].catalog); };
      if (ranks_ == Ranks::kinds && std::any_of(found.kinds.begin(), found.kinds.end(), same)) continue;
      found.kinds.push_back({std::move(kinds[i].catalog), i});
    }
  } catch (const ConfigError& error) {
    found.refused = error.what();
  }
}

Evaluator::Kinds& Evaluator::kinds_of(const PlanOptions& options) {
  const Parallelism& p = options.setup.parallel;
  const Key key{p.tensor,         p.pipeline,          p.expert,          resolved_expert_tensor(p),
                p.virtual_stages, p.sequence_parallel, number(p.schedule)};
  const auto [entry, added] = kinds_.try_emplace(key);
  Kinds& known = entry->second;
  if (added) {
    known.number = kinds_.size();
    try {
      find_kinds(options, known);
    } catch (...) {
      kinds_.erase(entry);
      throw;
    }
  }
  if (!known.refused.empty()) throw ConfigError("", "", known.refused);
  return known;
}

std::string Evaluator::refused(const PlanOptions& options) const {
  return profile_refuses(model_, model_.catalog, options.setup, options.whole_client());
}

void Evaluator::add_whole_states(const PlanOptions& options) {
  if (whole_) return;
  Setup setup;
  setup.policy = options.setup.policy;
  setup.optimizer = options.setup.optimizer;
  setup.adafactor_first_moment = options.setup.adafactor_first_moment;
  setup.ema = options.setup.ema;
  std::array<WholeStates, 2>& whole = whole_.emplace();
  for (const bool experts : {false, true}) {
    const DeviceMemory device = report_paper(part_of(model_.catalog, experts), setup).ranks.front().device;
    whole[experts ? 1 : 0] = {device.parameters, device.gradients, device.optimizer_states};
  }
}

Bytes Evaluator::least_states(const PlanOptions& options) {
  if (!is_bounded(options)) return {};
  add_whole_states(options);
  const Setup& setup = options.setup;
  const Parallelism& p = setup.parallel;
  Bytes least;
  for (const bool experts : {false, true}) {
    const bool apart = experts && experts_apart(p);
    const std::uint64_t model_ranks = (apart ? p.expert * resolved_expert_tensor(p) : p.tensor) * p.pipeline;
    const std::uint64_t data = apart ? expert_world_size(setup) : setup.world_size;
    const std::uint64_t shards = std::max<std::uint64_t>(data / setup.replicate, 1);
    const auto share = [&](Bytes bytes, int from) {
      return Bytes{bytes.count() / model_ranks / (setup.stage >= from ? shards : 1)};
    };
    const WholeStates& whole = (*whole_)[experts ? 1 : 0];
    // DualPipe holds twice as many parameters; that they are at least once is enough here.
    const auto part = [&](const OffloadedClass& placed, Bytes bytes, int from) {
      return placed.elsewhere() ? Bytes{} : share(bytes, from);
    };
    least += part(setup.offload.parameters, whole.parameters, 3) + part(setup.offload.gradients, whole.gradients, 2) +
             part(setup.offload.optimizer, whole.optimizer_states, 1);
  }
  return least;
}

const Evaluator::EngineSide& Evaluator::engine(const PlanOptions& options, Kinds& kinds, std::size_t kind) {
  const Setup& setup = options.setup;
  const Key key{kind,
                setup.world_size,
                setup.parallel.context,
                static_cast<std::uint64_t>(setup.stage),
                setup.replicate,
                setup.accumulation > 1,
                setup.prefetch,
                static_cast<std::uint64_t>(setup.recompute),
                options.offload ? words(*options.offload) : 0};
  const auto found = kinds.engines.find(key);
  if (found != kinds.engines.end()) return found->second;
  const Sized sized = size_kind(options, kinds.kinds[kind].catalog);
  return kinds.engines
      .emplace(key, EngineSide{sized.report.ranks.front(), engine_holds(options, sized), context_of(options)})
      .first->second;
}

const ActivityResult& Evaluator::activity(const PlanOptions& options, const ClientSetup& client, const Catalog& chunk) {
  const Parallelism& p = options.setup.parallel;
  std::vector<std::uint64_t> key{p.tensor,
                                 p.context,
                                 p.expert,
                                 resolved_expert_tensor(p),
                                 p.sequence_parallel,
                                 p.pipeline > 1,
                                 client.micro_batch,
                                 client.sequence,
                                 number(client.recompute, client.recompute_every),
                                 number(client.loss, client.loss_chunks)};
  for (const UnitRun& run : chunk.runs) {
    const auto tied = std::count_if(run.tensors.begin(), run.tensors.end(),
                                    [](const Tensor& tensor) { return !tensor.tied_to.empty(); });
    const std::vector<std::uint64_t> blocks = blocks_of(run);
    key.insert(key.end(),
               {words(run.name), run.count, run.tensors.size(), static_cast<std::uint64_t>(tied), blocks.size()});
    key.insert(key.end(), blocks.begin(), blocks.end());
  }
  const auto [entry, added] = activities_.try_emplace(std::move(key));
  if (!added) return entry->second;
  try {
    entry->second = activity_of(model_, chunk, options.setup, client, {.keeps_gradients = false});
  } catch (...) {
    activities_.erase(entry);
    throw;
  }
  if (entry->second.activity) entry->second.activity->saved.clear();  // lists that nobody asks for
  return entry->second;
}

const ClientHolds& Evaluator::client(const PlanOptions& options, const Kinds& kinds, std::size_t kind) {
  const ClientSetup client = options.whole_client();
  const Setup& setup = options.setup;
  const Key key{kinds.number,
                kind,
                setup.world_size,
                setup.parallel.context,
                setup.accumulation,
                client.micro_batch,
                client.sequence,
                number(client.recompute, client.recompute_every),
                number(client.loss, client.loss_chunks)};
  const auto found = clients_.find(key);
  if (found != clients_.end()) return found->second;
  const Kind& of = kinds.kinds[kind];
  const ClientSide side =
      client_of_rank(model_, of.catalog, setup, client, of.stage, machine_of(options),
                     [&](const Catalog& chunk) -> const ActivityResult& { return activity(options, client, chunk); });
  if (!side.holds) throw UnknownActivations(options.model, "", "activations are not counted: " + side.unknown_because);
  return clients_.emplace(key, *side.holds).first->second;
}

Bytes Evaluator::states(const PlanOptions& options) {
  Kinds& kinds = kinds_of(options);
  Bytes most;
  for (std::size_t i = 0; i < kinds.kinds.size(); ++i) {
    const EngineSide& side = engine(options, kinds, i);
    most = std::max(most, least_device_bytes(side.rank) + side.context.value_or(Bytes{}));
  }
  return most;
}

Bytes Evaluator::needed(const PlanOptions& options, Bytes enough) {
  Kinds& kinds = kinds_of(options);
  Bytes most;
  for (std::size_t i = 0; i < kinds.kinds.size() && most <= enough; ++i) {
    const EngineSide& side = engine(options, kinds, i);
    RankReport rank = side.rank;
    add_client(rank.device, side.holds, client(options, kinds, i));
    most = std::max(most, least_device_bytes(rank) + side.context.value_or(Bytes{}));
  }
  return most;
}

std::vector<RankReport> Evaluator::ranks(const PlanOptions& options, Held held) {
  Kinds& kinds = kinds_of(options);
  std::vector<RankReport> ranks;
  for (std::size_t i = 0; i < kinds.kinds.size(); ++i) {
    const EngineSide& side = engine(options, kinds, i);
    ranks.push_back(side.rank);
    if (held == Held::all) add_client(ranks.back().device, side.holds, client(options, kinds, i));
  }
  return ranks;
}

const RowsOfModules& Evaluator::rows(const PlanOptions& options) {
  const ClientSetup client = options.whole_client();
  const auto [entry, added] = rows_.try_emplace(client.sequence);
  if (added) entry->second = rows_of_modules(model_, options.setup, client);
  return entry->second;
}

StepTime Evaluator::time(const PlanOptions& options) {
  const Setup& setup = options.setup;
  const ClientSetup client = options.whole_client();
  const Parallelism& parallel = setup.parallel;
  StepSetup step;
  step.ranks = setup.world_size;
  step.replicas = setup.replicate;
  // Where gradients wait for the last micro-batch, parameters are gathered and gradients reduced once a step, as at stage 1.
  const bool waits = options.engine == Engine::fsdp2 && !engine_options_of(options).fsdp2.gradient_sync;
  step.stage = waits ? 1 : setup.stage;
  step.micro_batches = setup.accumulation;
  step.by_shardplan = options.engine == Engine::shardplan;
  step.reduces_each = !waits && resolved_cadence(setup) == Cadence::micro_batch;
  step.policy = setup.policy;
  step.optimizer = setup.optimizer;
  step.reduced = wire_dtype_of(options);
  step.overlapped = setup.prefetch > 0;
  step.recomputed = recomputed_part(client, model_.architecture);
  step.expert_ranks = parallel.expert;
  step.context_ranks = parallel.context;
  step.tensor_ranks = parallel.tensor;
  step.sequence_parallel = parallel.sequence_parallel;
  step.gathers_logits = client.profile == Profile::torchtitan && !client.loss_parallel;
  step.stages = parallel.pipeline;
  step.virtual_stages = parallel.virtual_stages;
  step.schedule = resolved_schedule(parallel);
  step.offload = setup.offload;
  step.work = {.tokens = checked_multiply(client.micro_batch, client.sequence) / parallel.context,
               .sequence = client.sequence,
               .compute = setup.policy.compute,
               .gradient = setup.policy.gradient,
               .accumulates = setup.accumulation > 1 && !step.by_shardplan,
               .expert_ranks = parallel.expert,
               .expert_load = client.expert_load,
               .rows = &rows(options),
               .samples = static_cast<double>(client.micro_batch) / static_cast<double>(parallel.context)};
  return times_.of(step);
}

}  // namespace shardplan::memcalc
