#include "tools/memcalc/fitting.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/text.h"
#include "tools/memcalc/evaluator.h"
#include "tools/memcalc/simulating.h"

namespace shardplan::memcalc {
namespace {

constexpr std::uint64_t kLargest = std::uint64_t{1} << 24;  // of a micro-batch, a sequence, a world

std::vector<std::uint64_t> powers_of_two(std::uint64_t largest) {
  std::vector<std::uint64_t> powers;
  for (std::uint64_t power = 1; power <= largest; power *= 2) powers.push_back(power);
  return powers;
}

class Search {
 public:
  Search(const PlanOptions& base, const FitOptions& question, Fit& fit)
      : base_(base), question_(question), fit_(fit), evaluator_(fit.model, fit.cluster) {
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
  bool varied(const char* flag) const { return !question_.given.contains(flag); }
  std::vector<std::uint64_t> axis(const char* flag, std::uint64_t given, std::uint64_t largest) const {
    return varied(flag) ? powers_of_two(largest) : std::vector<std::uint64_t>{given};
  }
  std::vector<RecomputeKind> recomputes() const;
  std::vector<int> stages() const;
  std::vector<PlanOptions> structures() const;
  void search(const PlanOptions& structure);
  void search(const PlanOptions& structure, const std::vector<std::uint64_t>& micro_batches);
  bool try_set_up(const PlanOptions& options, std::string change = {});
  Bytes needed(const PlanOptions& options);
  bool fits(const PlanOptions& options);
  void confirm();
  void reject(const PlanOptions& options, std::string why, std::uint64_t count = 1);
  void accept(const PlanOptions& options, Bytes needed, std::string change);

  const PlanOptions& base_;
  const FitOptions& question_;
  Fit& fit_;
  Evaluator evaluator_;
  std::optional<Bytes> base_needed_;  // question cheapest
};

void Search::reject(const PlanOptions& options, std::string why, std::uint64_t count) {
  fit_.decided += count;
  fit_.rejections += count;
  if (fit_.rejected.size() < question_.most_rejected) fit_.rejected.push_back({options, std::move(why)});
}

void Search::accept(const PlanOptions& options, Bytes needed, std::string change) {
  const StepTime time = evaluator_.time(options);
  ++fit_.decided;
  const auto sequences =
      static_cast<double>(options.micro_batch * options.setup.accumulation * data_parallel(options.setup));
  FittedPlan plan{.options = options,
                  .needed = needed,
                  .time = time,
                  .change = std::move(change),
                  .saved = {},
                  .sequences_per_second = sequences / time.seconds()};
  if (base_needed_) plan.saved = signed_difference(*base_needed_, needed);
  fit_.plans.push_back(std::move(plan));
}

// With what the allocator reserves and the context takes; a search through many set-ups leaves that for the best ones.
// Throws ConfigError where activations are not known.
Bytes Search::needed(const PlanOptions& options) {
  ++fit_.evaluated;
  const Bytes without_allocator = evaluator_.needed(options);
  if (question_.question == FitQuestion::best) return without_allocator;
  return least_device_bytes(make_planned(options, evaluator_.model()).worst());
}

bool Search::try_set_up(const PlanOptions& options, std::string change) {
  try {
    const Bytes needed = this->needed(options);
    if (needed <= fit_.gpu.bytes) {
      accept(options, needed, std::move(change));
      return true;
    }
    reject(options, fmt::format("needs {}, {} more than the GPU has", in_gb(needed), in_gb(needed - fit_.gpu.bytes)));
  } catch (const ConfigError& error) {
    reject(options, error.what());
  } catch (const ArithmeticOverflow& error) {
    reject(options, fmt::format("is too large to be counted: {}", error.what()));
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

// Plans the best ones whole, as many as are listed. What turns out not to fit goes to the rejected.
void Search::confirm() {
  std::vector<FittedPlan> plans;
  for (FittedPlan& plan : fit_.plans) {
    if (plans.size() < std::max<std::uint64_t>(question_.most_plans, 1)) {
      plan.needed = least_device_bytes(make_planned(plan.options, evaluator_.model()).worst());
      if (plan.needed > fit_.gpu.bytes) {
        --fit_.decided;
        reject(plan.options,
               fmt::format("needs {} with what the allocator reserves and the context takes", in_gb(plan.needed)));
        continue;
      }
    }
    plans.push_back(std::move(plan));
  }
  fit_.plans = std::move(plans);
}

std::vector<RecomputeKind> Search::recomputes() const {
  if (!varied("--recompute")) return {base_.client.recompute};
  return {RecomputeKind::none, RecomputeKind::full};
}

std::vector<int> Search::stages() const {
  if (!varied("--zero")) return {base_.setup.stage};
  return {0, 1, 2, 3};
}

// Set-ups that differ in how ranks share the model out. Those whose axes do not divide the world are left out; what the
// model does not allow is found when they are evaluated.
std::vector<PlanOptions> Search::structures() const {
  const std::uint64_t gpus = total_ranks(base_.setup);
  const Parallelism& given = base_.setup.parallel;
  const bool routed = fit_.model.catalog.active_parameters.has_value();
  std::vector<PlanOptions> structures;
  for (const std::uint64_t tensor : axis("--tp", given.tensor, std::min(gpus, base_.node_gpus()))) {
    for (const std::uint64_t pipeline :
         axis("--pp", given.pipeline, std::min(gpus / tensor, fit_.model.architecture.layers))) {
      for (const std::uint64_t context : axis("--cp", given.context, varied("--cp") ? 1 : given.context)) {
        for (const std::uint64_t expert : axis("--ep", given.expert, routed ? gpus / tensor / pipeline : 1)) {
          if (gpus % (tensor * pipeline * context) != 0) continue;
          for (const int stage : stages()) {
            PlanOptions options = base_;
            Parallelism& axes = options.setup.parallel;
            axes.tensor = tensor;
            axes.pipeline = pipeline;
            axes.context = context;
            axes.expert = expert;
            if (varied("--sequence-parallel")) axes.sequence_parallel = tensor > 1;
            options.setup.world_size = gpus / (tensor * pipeline);
            options.setup.stage = stage;
            structures.push_back(std::move(options));
          }
        }
      }
    }
  }
  return structures;
}

void Search::search(const PlanOptions& structure) {
  const std::uint64_t data = data_parallel(structure.setup);
  std::vector<std::uint64_t> micro_batches;
  for (const std::uint64_t size :
       axis("--micro-batch", base_.micro_batch, fit_.sequences / std::max<std::uint64_t>(data, 1))) {
    if (fit_.sequences % checked_multiply(size, data) == 0) micro_batches.push_back(size);
  }
  if (micro_batches.empty()) {
    return reject(structure,
                  fmt::format("{} sequences are no whole micro-batches on {} data ranks", fit_.sequences, data));
  }
  search(structure, micro_batches);
}

void Search::search(const PlanOptions& structure, const std::vector<std::uint64_t>& micro_batches) {
  const std::uint64_t data = data_parallel(structure.setup);
  const auto with = [&](RecomputeKind recompute, std::uint64_t size) {
    PlanOptions options = structure;
    options.micro_batch = size;
    options.setup.accumulation = fit_.sequences / (size * data);
    options.client.recompute = recompute;
    options.setup.recompute = recompute == RecomputeKind::full ? Recompute::full : Recompute::none;
    return options;
  };
  const std::vector<RecomputeKind> recomputes = this->recomputes();
  // Model states alone, once; with one micro-batch a step they are least, for nothing is accumulated.
  try {
    PlanOptions least = with(recomputes.back(), micro_batches.back());
    const Bytes states = evaluator_.states(least);
    if (states > fit_.gpu.bytes) {
      return reject(least, fmt::format("the engine alone needs {}", in_gb(states)),
                    recomputes.size() * micro_batches.size());
    }
  } catch (const ConfigError& error) {
    return reject(structure, error.what(), recomputes.size() * micro_batches.size());
  } catch (const ArithmeticOverflow& error) {
    return reject(structure, error.what(), recomputes.size() * micro_batches.size());
  }
  for (const RecomputeKind recompute : recomputes) {
    for (std::size_t i = 0; i < micro_batches.size(); ++i) {
      if (try_set_up(with(recompute, micro_batches[i]))) continue;
      // A larger micro-batch needs more, but for the last one, which may be the only one of its step.
      if (i + 1 >= micro_batches.size()) break;
      const std::size_t skipped = micro_batches.size() - 2 - i;
      if (skipped > 0) reject(with(recompute, micro_batches[i + 1]), "a smaller micro-batch does not fit", skipped);
      try_set_up(with(recompute, micro_batches.back()));
      break;
    }
  }
}

void Search::best() {
  for (const PlanOptions& structure : structures()) search(structure);
  std::stable_sort(fit_.plans.begin(), fit_.plans.end(),
                   [](const FittedPlan& a, const FittedPlan& b) { return a.time.seconds() < b.time.seconds(); });
  confirm();
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
  while (high * step <= kLargest && fits(with(high))) {
    low = high;
    high *= 2;
  }
  while (high - low > 1 && low > 0) {
    const std::uint64_t middle = low + (high - low) / 2;
    (fits(with(middle)) ? low : high) = middle;
  }
  if (low == 0) {
    try_set_up(with(1));
    return;
  }
  if (!try_set_up(with(low))) return;
  if (low * step < kLargest) try_set_up(with(low + 1));
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
  const Model given = fit_.model;
  if (!with_blocks(given, 1)) {
    throw ConfigError("--ask", "", "model: the blocks of this model are of several kinds, or some are frozen");
  }
  const auto fits_with = [&](std::uint64_t blocks) {
    evaluator_ = Evaluator(*with_blocks(given, blocks), fit_.cluster);
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
  fit_.model = *with_blocks(given, std::max<std::uint64_t>(low, 1) * step);
  evaluator_ = Evaluator(fit_.model, fit_.cluster);
  if (!try_set_up(base_)) return;
  fit_.answer = fmt::format("{} blocks, {} parameters", with_commas(low * step),
                            with_commas(parameter_elements(fit_.model.catalog)));
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

std::vector<Change> changes_of(const PlanOptions& base) {
  std::vector<Change> changes;
  const auto add = [&](const char* kind, std::string words, std::function<void(PlanOptions&)> apply) {
    changes.push_back({kind, std::move(words), std::move(apply)});
  };
  for (int stage = base.setup.stage + 1; stage <= 3; ++stage) {
    add("stage", fmt::format("--zero {}", stage), [stage](PlanOptions& o) { o.setup.stage = stage; });
  }
  if (base.client.recompute != RecomputeKind::full) {
    add("recompute", "--recompute full", [](PlanOptions& o) {
      o.client.recompute = RecomputeKind::full;
      o.setup.recompute = Recompute::full;
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
  if (base.setup.prefetch > 0) add("prefetch", "--prefetch 0", [](PlanOptions& o) { o.setup.prefetch = 0; });
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
  const std::vector<Change> changes = changes_of(base_);
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

Fit make_fit(const PlanOptions& options, const FitOptions& question) {
  if (options.parameters) throw ConfigError("--params", "", "a count alone has no activations: expected MODEL");
  if (!options.gpu && !question.cluster) throw ConfigError("--gpu", "", "expected the GPU that it has to fit");
  PlanOptions base = options;
  if (!base.sequence && question.question == FitQuestion::sequence) base.sequence = 1;
  if (!base.sequence) throw ConfigError("--seq", "", "expected the tokens of a sequence, which decide activations");
  Fit fit;
  fit.question = question.question;
  fit.model = read_planned_model(base);
  fit.cluster = choose_cluster(base, question.cluster, fit.notes);
  if (!base.gpu) base.gpu = fit.cluster.gpu.name;
  fit.gpu = find_capacity(*base.gpu, base.gpu_files);
  PlanOptions plain = base;
  plain.setup.parallel = {};
  const ClientSide known = client_side(plain, fit.model, fit.model.catalog, 0);
  if (!known.holds) throw ConfigError(base.model, "", "activations are not counted: " + known.unknown_because);
  const auto begin = std::chrono::steady_clock::now();
  Search search(base, question, fit);
  run(search, question);
  fit.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return fit;
}

}  // namespace shardplan::memcalc
