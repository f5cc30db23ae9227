// The training loop of one rank: the optimizer's client.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/offload.h"
#include "planner/step_plan.h"
#include "runtime/communicator.h"
#include "shard/options.h"
#include "tools/train/checkpointing.h"
#include "tools/train/gpt_tensors.h"
#include "tools/train/text.h"

namespace shardplan::train {

struct TrainingOptions {
  std::string text;  // a file
  std::uint64_t ranks = 1;
  GptConfig model{.layers = 2, .width = 128, .heads = 4, .context = 64, .tied = true, .seed = 0};
  std::uint64_t micro_batch = 8;  // sequences
  std::uint64_t steps = 400;
  Setup setup;  // world size and micro-batches per step included
  Hyperparameters hyperparameters{.learning_rate = 1e-3, .weight_decay = 0.01};
  double clip_norm = 1;
  LossScaling loss_scaling;
  OffloadOptions offload;                      // with Setup::offload
  std::chrono::milliseconds deadline{60'000};  // of a wait for a peer
  CheckpointOptions checkpoints;
  bool json = false;
};

// What the ranks have in common.
struct Training {
  TrainingOptions options;
  Text text;
  Catalog catalog;
  StepPlan plan;
};

// Reads the text and plans. Throws IoError and ConfigError.
Training make_training(const TrainingOptions& options);

// What one rank's engine was planned to hold and was seen to hold, in bytes.
struct TierMemory {
  std::uint64_t planned_peak = 0;
  std::uint64_t measured_peak = 0;
  std::uint64_t planned_live_peak = 0;
  std::uint64_t measured_live_peak = 0;
};
struct RankMemory {
  TierMemory device;
  TierMemory host;
  TierMemory file;
  std::int64_t resident_growth = 0;  // of its process; of memory that processes share, its part
};

// What one rank saw. All but the times is the same on every rank.
struct RankResult {
  std::uint64_t first_step = 0;  // that this run did
  bool stopped = false;          // before the last step, because SIGTERM came
  std::vector<double> losses;    // of each step: the mean over all ranks and micro-batches
  std::vector<double> norms;
  std::vector<double> scales;
  std::uint64_t skipped_steps = 0;
  std::optional<double> held_out_loss;  // not of a run that was stopped
  std::string parameters_digest;
  std::uint64_t planned_snapshot = 0;  // bytes of host memory for saves in the background
  std::uint64_t measured_snapshot = 0;
  std::vector<RankMemory> memory;  // of every rank
  double seconds_per_step = 0;
  double communication_seconds = 0;
  double optimizer_seconds = 0;
};

// Collective over `world`. `device` is where this rank's arena comes from.
RankResult train_rank(const Training& training, Communicator& world, Device& device);

}  // namespace shardplan::train
