#include "tools/memcalc/fitting.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/text.h"
#include "tools/memcalc/best_plans.h"
#include "tools/memcalc/findings.h"
#include "tools/memcalc/joint_evaluator.h"
#include "tools/memcalc/search_space.h"
#include "tools/memcalc/simulating.h"
#include "tools/memcalc/together.h"

namespace shardplan::memcalc {
namespace {

constexpr std::uint64_t kLargest = std::uint64_t{1} << 24;  // of a micro-batch, a sequence, a world
class Search {
 public:
  Search(const PlanOptions& base, const FitOptions& question, Fit& fit)
      : base_(base), question_(question), fit_(fit), findings_(question, fit) {
    read_models();
    const std::uint64_t data = data_parallel(base.setup);
    fit.sequences = question.global_batch.value_or(
        checked_multiply(checked_multiply(base.micro_batch, base.setup.accumulation), data));
  }

  void best();
  void largest(const char* what, std::uint64_t step, const std::function<void(PlanOptions&, std::uint64_t)>& set);
  void model();
  void gpus();
  void cheapest();

 private:
  void read_models() { evaluator_.emplace(fit_.models, options_of_models(base_), fit_.cluster); }
  bool try_set_up(const PlanOptions& options, const std::string& change = {});
  Bytes needed(const PlanOptions& options);
  bool fits(const PlanOptions& options);

  const PlanOptions& base_;
  const FitOptions& question_;
  Fit& fit_;
  Findings findings_;
  std::optional<JointEvaluator> evaluator_;
  std::optional<Bytes> base_needed_;  // question cheapest
};

// With what the allocator reserves and the context takes. Throws ConfigError where activations are not known.
Bytes Search::needed(const PlanOptions& options) {
  ++fit_.evaluated;
  const Bytes without_allocator = evaluator_->needed(options);
  return std::max(without_allocator, evaluator_->planned(options));
}

bool Search::try_set_up(const PlanOptions& options, const std::string& change) {
  try {
    const Bytes needed = this->needed(options);
    if (needed <= fit_.gpu.bytes) {
      findings_.accept(options, needed, evaluator_->time(options), change, base_needed_);
      return true;
    }
    findings_.reject(options, needed);
  } catch (const UnknownActivations& error) {
    findings_.reject(options, Rejection::unknown, error.what());
  } catch (const ConfigError& error) {
    findings_.reject(options, Rejection::contradiction, error.what());
  } catch (const ArithmeticOverflow& error) {
    findings_.reject(options, Rejection::unknown, fmt::format("is too large to be counted: {}", error.what()));
  }
  return false;
}

// A set-up that contradicts itself, or that is too large to be counted, does not fit.
bool Search::fits(const PlanOptions& options) {
  ++fit_.decided;
  try {
    return needed(options) <= fit_.gpu.bytes;
  } catch (const ConfigError&) {
    return false;
  } catch (const ArithmeticOverflow&) {
    return false;
  }
}

void Search::best() {
  const SearchSpace space(base_, question_, fit_.models, fit_.sequences);
  find_best_plans(space, std::max<std::uint64_t>(question_.most_plans, 1), *evaluator_, findings_);
  if (!fit_.plans.empty()) fit_.answer = axes_of(fit_.plans.front().options);
}

// The largest multiple of `step` that fits: doubles until it does not, then halves the distance.
void Search::largest(const char* what, std::uint64_t step,
                     const std::function<void(PlanOptions&, std::uint64_t)>& set) {
  const auto with = [&](std::uint64_t count) {
    PlanOptions options = base_;
    set(options, count * step);
    return options;
  };
  std::uint64_t low = 0;
  std::uint64_t high = 1;
  const std::uint64_t most = kLargest / step;
  while (high <= most && fits(with(high))) {
    low = high;
    high *= 2;
  }
  high = std::min(high, most + 1);
  while (high - low > 1 && low > 0) {
    const std::uint64_t middle = low + (high - low) / 2;
    (fits(with(middle)) ? low : high) = middle;
  }
  if (low == 0) {
    try_set_up(with(1));
    return;
  }
  if (!try_set_up(with(low))) return;
  if (low < most) try_set_up(with(low + 1));
  fit_.answer = fmt::format("{} {}", what, with_commas(low * step));
}

// The same model with more or fewer equal blocks: those of its last stack. Nothing where its blocks are not all alike.
std::optional<Model> with_blocks(const Model& model, std::uint64_t blocks) {
  Model changed = model;
  const auto numbered = [](const auto& run) { return run.numbered; };
  std::vector<UnitRun>& runs = changed.catalog.runs;
  if (std::count_if(runs.begin(), runs.end(), numbered) != 1) return std::nullopt;
  std::find_if(runs.begin(), runs.end(), numbered)->count = blocks;
  const auto modules = std::find_if(changed.modules.begin(), changed.modules.end(), numbered);
  if (modules != changed.modules.end()) modules->count = blocks;
  changed.architecture.layers = blocks;
  return changed;
}

void Search::model() {
  const Model given = fit_.model();
  if (!with_blocks(given, 1)) {
    throw ConfigError("--ask", "", "model: the blocks of this model are of several kinds, or some are frozen");
  }
  const auto fits_with = [&](std::uint64_t blocks) {
    fit_.models.front() = *with_blocks(given, blocks);
    read_models();
    return fits(base_);
  };
  const std::uint64_t step = base_.setup.parallel.pipeline * base_.setup.parallel.virtual_stages;
  constexpr std::uint64_t kMostBlocks = 1 << 12;
  std::uint64_t low = 0;
  std::uint64_t high = 1;
  while (high * step <= kMostBlocks && fits_with(high * step)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1 && low > 0) {
    const std::uint64_t middle = low + (high - low) / 2;
    (fits_with(middle * step) ? low : high) = middle;
  }
  fit_.models.front() = *with_blocks(given, std::max<std::uint64_t>(low, 1) * step);
  read_models();
  if (!try_set_up(base_)) return;
  fit_.answer = fmt::format("{} blocks, {} parameters", with_commas(low * step),
                            with_commas(parameter_elements(fit_.model().catalog)));
}

// As many sequences per step and GPU as in the set-up as it is given.
void Search::gpus() {
  const Parallelism& axes = base_.setup.parallel;
  const std::uint64_t model_ranks = axes.tensor * axes.pipeline;
  const auto with = [&](std::uint64_t data) {
    PlanOptions options = base_;
    options.setup.world_size = data * axes.context;
    return options;
  };
  std::uint64_t low = 0;
  std::uint64_t high = 1;
  const auto fits_with = [&](std::uint64_t data) { return fits(with(data)); };
  while (high * axes.context * model_ranks <= kLargest && !fits_with(high)) {
    low = high;
    high *= 2;
  }
  if (high * axes.context * model_ranks > kLargest) {
    try_set_up(with(low));
    return;
  }
  while (high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    (fits_with(middle) ? high : low) = middle;
  }
  if (!try_set_up(with(high))) return;
  if (high > 1) try_set_up(with(high - 1));
  fit_.answer = fmt::format("{} GPUs", with_commas(high * axes.context * model_ranks));
}

struct Change {
  std::string kind;  // two of one kind exclude each other
  std::string words;
  std::function<void(PlanOptions&)> apply;
};

// `known`: whether the model's profile knows a set-up's recomputation.
std::vector<Change> changes_of(const PlanOptions& base, const std::function<bool(const PlanOptions&)>& known) {
  std::vector<Change> changes;
  const auto add = [&](const char* kind, std::string words, std::function<void(PlanOptions&)> apply) {
    changes.push_back({kind, std::move(words), std::move(apply)});
  };
  for (int stage = base.setup.stage + 1; stage <= 3; ++stage) {
    add("stage", fmt::format("--zero {}", stage), [stage](PlanOptions& o) { o.setup.stage = stage; });
  }
  for (const auto& [kind, of_units] : {std::pair{RecomputeKind::full, Recompute::full},
                                       {RecomputeKind::invert, Recompute::none},
                                       {RecomputeKind::adjoint, Recompute::none}}) {
    PlanOptions changed = base;
    changed.client.recompute = kind;
    if (base.client.recompute == kind || (kind != RecomputeKind::full && !known(changed))) continue;
    add("recompute", fmt::format("--recompute {}", recompute_words(kind, 1)),
        [kind = kind, units = of_units](PlanOptions& o) {
          o.client.recompute = kind;
          o.setup.recompute = units;
        });
  }
  for (std::uint64_t size = base.micro_batch / 2; size > 0; size /= 2) {
    if (base.micro_batch % size != 0) continue;
    const std::uint64_t times = base.micro_batch / size;
    add("mesh", fmt::format("--micro-batch {} --grad-accum {}", size, base.setup.accumulation * times),
        [size, times](PlanOptions& o) {
          o.micro_batch = size;
          o.setup.accumulation *= times;
        });
  }
  const bool ours = base.engine == Engine::shardplan;
  for (const char* words : {"optimizer=cpu", "optimizer=cpu,gradients=cpu"}) {
    if (!ours || base.offload) break;
    add("offload", fmt::format("--offload {}", words), [words](PlanOptions& o) {
      o.offload = words;
      o.setup.offload = parse_offload(words).offload;
    });
  }
  if (ours && base.setup.prefetch > 0) add("prefetch", "--prefetch 0", [](PlanOptions& o) { o.setup.prefetch = 0; });
  for (const std::uint64_t factor : {std::uint64_t{2}, std::uint64_t{4}, std::uint64_t{8}}) {
    const std::uint64_t tensor = base.setup.parallel.tensor * factor;
    if (base.setup.world_size % (factor * base.setup.parallel.context) == 0 && tensor <= base.node_gpus()) {
      add("mesh", fmt::format("--tp {} --sequence-parallel --grad-accum {}", tensor, base.setup.accumulation * factor),
          [tensor, factor](PlanOptions& o) {
            o.setup.parallel.tensor = tensor;
            o.setup.parallel.sequence_parallel = true;
            o.setup.world_size /= factor;
            o.setup.accumulation *= factor;
          });
    }
    const std::uint64_t pipeline = base.setup.parallel.pipeline * factor;
    if (base.setup.world_size % (factor * base.setup.parallel.context) == 0) {
      add("mesh", fmt::format("--pp {} --grad-accum {}", pipeline, base.setup.accumulation * factor),
          [pipeline, factor](PlanOptions& o) {
            o.setup.parallel.pipeline = pipeline;
            o.setup.world_size /= factor;
            o.setup.accumulation *= factor;
          });
    }
  }
  return changes;
}

// Single changes, then pairs of two kinds where no single one is enough. (Those that change the accumulation are one kind.)
void Search::cheapest() {
  base_needed_ = needed(base_);
  if (try_set_up(base_, "nothing: it fits as it is")) {
    fit_.answer = fit_.plans.front().change;
    return;
  }
  const std::vector<Change> changes =
      changes_of(base_, [&](const PlanOptions& options) { return evaluator_->refused(options).empty(); });
  for (const Change& change : changes) {
    PlanOptions options = base_;
    change.apply(options);
    try_set_up(options, change.words);
  }
  if (fit_.plans.empty()) {
    for (std::size_t i = 0; i < changes.size(); ++i) {
      for (std::size_t k = i + 1; k < changes.size(); ++k) {
        if (changes[i].kind == changes[k].kind) continue;
        PlanOptions options = base_;
        changes[i].apply(options);
        changes[k].apply(options);
        try_set_up(options, changes[i].words + " " + changes[k].words);
      }
    }
  }
  std::stable_sort(fit_.plans.begin(), fit_.plans.end(), [](const FittedPlan& a, const FittedPlan& b) {
    return a.sequences_per_second > b.sequences_per_second;
  });
  if (!fit_.plans.empty()) fit_.answer = fit_.plans.front().change;
}

void run(Search& search, const FitOptions& fit) {
  switch (fit.question) {
    case FitQuestion::best:
      return search.best();
    case FitQuestion::micro_batch:
      return search.largest("micro-batch", 1, [](PlanOptions& o, std::uint64_t size) { o.micro_batch = size; });
    case FitQuestion::sequence:
      return search.largest("sequence", 128, [](PlanOptions& o, std::uint64_t size) { o.sequence = size; });
    case FitQuestion::model:
      return search.model();
    case FitQuestion::gpus:
      return search.gpus();
    case FitQuestion::cheapest:
      return search.cheapest();
  }
}

}  // namespace

std::string_view name(FitQuestion question) {
  switch (question) {
    case FitQuestion::best:
      return "best";
    case FitQuestion::micro_batch:
      return "micro-batch";
    case FitQuestion::sequence:
      return "seq";
    case FitQuestion::model:
      return "model";
    case FitQuestion::gpus:
      return "gpus";
    case FitQuestion::cheapest:
      return "cheapest";
  }
  return "";
}

std::string_view name(Rejection reason) {
  switch (reason) {
    case Rejection::contradiction:
      return "contradict themselves, the model or the engine";
    case Rejection::unknown:
      return "cannot be sized or timed";
    case Rejection::states:
      return "model states alone do not fit";
    case Rejection::memory:
      return "activations and model states do not fit";
  }
  return "";
}

Fit make_fit(const PlanOptions& options, const FitOptions& question) {
  if (options.parameters) throw ConfigError("--params", "", "a count alone has no activations: expected MODEL");
  if (!options.gpu && !question.cluster) throw ConfigError("--gpu", "", "expected the GPU that it has to fit");
  PlanOptions base = options;
  if (!base.sequence && question.question == FitQuestion::sequence) base.sequence = 1;
  Fit fit;
  fit.question = question.question;
  const std::vector<PlanOptions> of_models = options_of_models(base);
  for (const PlanOptions& of_one : of_models) fit.models.push_back(read_planned_model(of_one));
  // Beside an encoder that reads it or as a part of the batch: diffusion transformers take as many as they were made for.
  const auto reads = [](const Model& model) { return model.architecture.vocabulary > 0; };
  if (!base.sequence && std::any_of(fit.models.begin(), fit.models.end(), reads)) {
    throw ConfigError("--seq", "", "expected the tokens of a sequence, which decide activations");
  }
  if (question.question == FitQuestion::sequence && std::none_of(fit.models.begin(), fit.models.end(), reads)) {
    throw ConfigError("--ask", "", fmt::format("seq: {} reads no text of its own", fit.model().catalog.name));
  }
  fit.cluster = choose_cluster(base, question.cluster, fit.notes);
  if (!base.gpu) base.gpu = fit.cluster.gpu.name;
  fit.gpu = find_capacity(*base.gpu, base.gpu_files);
  if (base.offload && base.engine != Engine::shardplan) {
    fit.notes.push_back(fmt::format(
        "times are without --offload {}: copies to and from it and updates there are not timed", *base.offload));
  }
  for (std::size_t i = 0; i < of_models.size(); ++i) {
    PlanOptions plain = of_models[i];
    plain.setup.parallel = {};
    const ClientSide known = client_side(plain, fit.models[i], fit.models[i].catalog, 0);
    if (!known.holds) throw ConfigError(plain.model, "", "activations are not counted: " + known.unknown_because);
  }
  const auto begin = std::chrono::steady_clock::now();
  Search search(base, question, fit);
  run(search, question);
  const auto offloads = [&](const FittedPlan& plan) { return plan.options.offload != base.offload; };
  if (std::any_of(fit.plans.begin(), fit.plans.end(), offloads)) {
    fit.notes.emplace_back("host memory is no bound of the search: plan says how much a set-up with offload pins");
  }
  if (fit.models.size() > 1) fit.notes.emplace_back(kTurnsNote);
  fit.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return fit;
}

}  // namespace shardplan::memcalc
