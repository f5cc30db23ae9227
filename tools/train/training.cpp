#include "tools/train/training.h"

#include <fmt/format.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>

#include "offload/recording_tier.h"
#include "runtime/recording_device.h"
#include "shard/zero_optimizer.h"
#include "tools/train/gpt.h"
#include "tools/train/stop_signal.h"

namespace shardplan::train {
namespace {

// A page that several processes have mapped counts by its share in each, so that their sum counts it once.
std::int64_t resident_bytes() {
  std::ifstream shares("/proc/self/smaps_rollup");
  for (std::string word; shares >> word;) {
    std::int64_t kib = 0;
    if (word == "Pss:" && shares >> kib) return kib * 1024;
  }
  std::int64_t all = 0;
  std::int64_t resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// The mean of one number per rank, summed in rank order: the same bits everywhere.
double mean_over_ranks(Communicator& world, double mine) {
  std::vector<double> all(static_cast<std::size_t>(world.size()));
  world.all_gather_bytes(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  double sum = 0;
  for (const double value : all) sum += value;
  return sum / static_cast<double>(all.size());
}

// What ranks tell each other at the end of a step.
struct StepNews {
  double loss = 0;  // the mean over all ranks
  bool stop = false;
};

StepNews tell_all_ranks(Communicator& world, double loss) {
  struct Record {
    double loss;
    double stop;
  };
  const Record mine{loss, stop_asked() ? 1.0 : 0.0};
  std::vector<Record> all(static_cast<std::size_t>(world.size()));
  world.all_gather_bytes(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  StepNews news;
  for (const Record& record : all) {
    news.loss += record.loss;
    news.stop = news.stop || record.stop != 0;
  }
  news.loss /= static_cast<double>(all.size());
  return news;
}

std::vector<RankMemory> memory_of_all_ranks(Communicator& world, const RankMemory& mine) {
  std::vector<RankMemory> all(static_cast<std::size_t>(world.size()));
  world.all_gather_bytes(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

class RankTraining {
 public:
  RankTraining(const Training& training, Communicator& world, Device& device)
      : training_(training),
        options_(training.options),
        world_(world),
        device_(device),
        gpt_(options_.model, options_.micro_batch),
        batch_(options_.micro_batch * training.text.window_bytes()) {
    // Hybrid sharding: consecutive ranks shard, and equal places in their groups replicate each other.
    communicators_ = {.world = &world, .shard_group = &world, .replicas = nullptr};
    const RankPlace place = place_of_rank(training.plan.layout, static_cast<std::uint64_t>(world.rank()));
    if (training.plan.layout.replicas > 1) {
      shard_group_ = world.split(static_cast<int>(place.replica), world.rank());
      replicas_ = world.split(static_cast<int>(place.shard), world.rank());
      communicators_.shard_group = shard_group_.get();
      communicators_.replicas = replicas_.get();
    }
  }

  RankResult run() {
    world_.barrier();
    const std::int64_t before = resident_bytes();
    ZeroOptimizer optimizer(training_.catalog, training_.plan, device_, communicators_, optimizer_options());
    Checkpointing checkpointing(options_.checkpoints, options_.model.seed, optimizer, world_, device_);
    result_.planned_snapshot = checkpointing.planned_snapshot().count();
    result_.first_step = checkpointing.resume();
    const auto start = std::chrono::steady_clock::now();
    std::uint64_t step = result_.first_step;
    for (bool last = false; step < options_.steps && !last; ++step) {
      const bool stop = train_step(optimizer, step, start);
      last = stop || step + 1 == options_.steps;
      checkpointing.after_step(step + 1, last);
    }
    result_.stopped = step < options_.steps;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const auto steps = static_cast<double>(std::max<std::size_t>(result_.losses.size(), 1));
    result_.seconds_per_step = elapsed.count() / steps;
    result_.communication_seconds /= steps;
    result_.optimizer_seconds /= steps;
    world_.barrier();
    const std::int64_t growth = resident_bytes() - before;
    world_.barrier();
    if (!result_.stopped) result_.held_out_loss = evaluate(optimizer);
    result_.measured_snapshot = device_.report(MemoryTier::host).high_water.count();
    result_.memory = memory_of_all_ranks(world_, memory(growth));
    result_.parameters_digest = digest(optimizer);
    file_ = nullptr;
    return result_;
  }

 private:
  ZeroOptions optimizer_options() {
    ZeroOptions options;
    options.groups = {{.match = "*", .values = options_.hyperparameters}};
    options.clip_norm = options_.clip_norm;
    options.loss_scaling = options_.loss_scaling;
    options.offload = options_.offload;
    options.offload.make_tier = [this](const FileTierOptions& file) {
      auto tier = std::make_unique<RecordingTier>(std::make_unique<FileTier>(file));
      file_ = tier.get();
      return tier;
    };
    options.initial_values = [this](const TensorRange& range, std::span<float> values) {
      fill_initial(options_.model, range.tensor, range.first, values);
    };
    return options;
  }

  static TierMemory tier_memory(const ArenaPlan& planned, Bytes seen_peak, Bytes seen_live_peak) {
    return {.planned_peak = planned.bytes.count(),
            .measured_peak = seen_peak.count(),
            .planned_live_peak = planned.live_peak.count(),
            .measured_live_peak = seen_live_peak.count()};
  }

  RankMemory memory(std::int64_t resident_growth) const {
    const StepPlan& plan = training_.plan;
    const RecordingDevice::Report device = device_.report(MemoryTier::device);
    const RecordingDevice::Report host = device_.report(MemoryTier::pinned_host);
    const RecordingTier::Report file = file_ == nullptr ? RecordingTier::Report{} : file_->report();
    const bool offloaded = plan.setup.offload.any();
    return {.device = tier_memory(plan.device, device.high_water, device.live_peak),
            .host = offloaded ? tier_memory(plan.pinned, host.high_water, host.live_peak) : TierMemory{},
            .file = tier_memory(plan.file, file.high_water, file.live),
            .resident_growth = resident_growth};
  }

  // Whether a rank has been asked to stop.
  bool train_step(ZeroOptimizer& optimizer, std::uint64_t step, std::chrono::steady_clock::time_point start) {
    double loss = 0;
    for (std::uint64_t i = 0; i < options_.setup.accumulation; ++i) {
      const bool last = i + 1 == options_.setup.accumulation;
      training_.text.sample({options_.model.seed, step, i, static_cast<std::uint64_t>(world_.rank())}, batch_);
      gpt_.set_batch(batch_);
      gpt_.set_loss_scale(static_cast<float>(optimizer.loss_scale()));
      optimizer.begin(last ? ProgramKind::last_micro_batch : ProgramKind::train_micro_batch);
      for (std::uint64_t unit = 0; unit < gpt_.units(); ++unit) {
        gpt_.forward(unit, optimizer.enter(unit, Pass::forward));
        optimizer.leave(unit);
      }
      for (std::uint64_t unit = gpt_.units(); unit-- > 0;) {
        if (options_.setup.recompute == Recompute::full) {
          optimizer.enter(unit, Pass::recompute);  // this model keeps its activations: nothing to do
          optimizer.leave(unit);
        }
        gpt_.backward(unit, optimizer.enter(unit, Pass::backward));
        optimizer.leave(unit);
      }
      loss += gpt_.loss();
    }
    const StepReport report = optimizer.step();
    const StepNews news = tell_all_ranks(world_, loss / static_cast<double>(options_.setup.accumulation));
    result_.losses.push_back(news.loss);
    result_.norms.push_back(report.norm);
    result_.scales.push_back(report.loss_scale);
    result_.skipped_steps += report.skipped ? 1 : 0;
    result_.communication_seconds += report.communication_seconds;
    result_.optimizer_seconds += report.update_seconds;
    if (world_.rank() == 0) show_progress(step + 1, start);
    return news.stop;
  }

  void show_progress(std::uint64_t done, std::chrono::steady_clock::time_point start) const {
    const bool terminal = isatty(STDERR_FILENO) != 0;
    if (options_.json && !terminal) return;
    if (!terminal && done % 50 != 0 && done != options_.steps) return;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const auto tokens = static_cast<double>((done - result_.first_step) * options_.ranks * options_.setup.accumulation *
                                            options_.micro_batch * options_.model.context);
    fmt::print(stderr, "{}step {:>5} of {}   loss {:.4f}   {:>8.0f} tokens/s   memory planned {}, held {}{}",
               terminal ? "\r" : "", done, options_.steps, result_.losses.back(), tokens / elapsed.count(),
               in_gb(training_.plan.device.bytes), in_gb(device_.report(MemoryTier::device).high_water),
               terminal && done != options_.steps ? "" : "\n");
  }

  // Ranks take turns over the held-out windows, in whole micro-batches; each evaluates as often as the others, because
  // units are gathered together.
  double evaluate(ZeroOptimizer& optimizer) {
    const std::uint64_t windows = training_.text.held_out_windows();
    const auto ranks = static_cast<std::uint64_t>(world_.size());
    const std::uint64_t whole_batches = windows / options_.micro_batch;
    const bool small = whole_batches == 0;
    const std::uint64_t batches = small ? 1 : whole_batches;
    double sum = 0;
    for (std::uint64_t round = 0; round * ranks < batches; ++round) {
      const std::uint64_t mine = round * ranks + static_cast<std::uint64_t>(world_.rank());
      const bool counts = mine < batches;
      const std::uint64_t sequences = small ? windows : options_.micro_batch;
      const std::span<std::uint8_t> batch = std::span(batch_).first(sequences * training_.text.window_bytes());
      training_.text.copy_held_out(counts ? mine * sequences : 0, batch);
      gpt_.set_batch(batch);
      optimizer.begin(ProgramKind::evaluate);
      for (std::uint64_t unit = 0; unit < gpt_.units(); ++unit) {
        gpt_.forward(unit, optimizer.enter(unit, Pass::forward));
        optimizer.leave(unit);
      }
      if (counts) sum += gpt_.loss();
    }
    return mean_over_ranks(world_, sum) * static_cast<double>(ranks) / static_cast<double>(batches);
  }

  static std::string digest(ZeroOptimizer& optimizer) {
    const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), XXH3_freeState);
    XXH3_128bits_reset(state.get());
    optimizer.visit_parameters([&](const TensorRange&, std::span<const float> values) {
      XXH3_128bits_update(state.get(), values.data(), values.size_bytes());
    });
    const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

  const Training& training_;
  const TrainingOptions& options_;
  Communicator& world_;
  RecordingDevice device_;
  std::unique_ptr<Communicator> shard_group_;
  std::unique_ptr<Communicator> replicas_;
  Communicators communicators_;
  RecordingTier* file_ = nullptr;  // the optimizer's
  Gpt gpt_;
  std::vector<std::uint8_t> batch_;
  RankResult result_;
};

}  // namespace

Training make_training(const TrainingOptions& options) {
  Catalog catalog = gpt_catalog(options.model);
  StepPlan plan = make_step_plan(catalog, options.setup);
  return {options, Text::read(options.text, options.model.context), std::move(catalog), std::move(plan)};
}

RankResult train_rank(const Training& training, Communicator& world, Device& device) {
  return RankTraining(training, world, device).run();
}

}  // namespace shardplan::train
