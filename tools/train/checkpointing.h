// When a training saves and where it goes on: --save, --save-every, --save-background, --keep, --resume.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/communicator.h"
#include "runtime/files/posix_files.h"
#include "shard/checkpoint/background_save.h"
#include "shard/zero_optimizer.h"

namespace shardplan::train {

struct CheckpointOptions {
  std::string save;         // a folder; empty: nothing is saved
  std::uint64_t every = 0;  // steps; 0: after the last one alone
  bool background = false;  // writes while training goes on: a planned copy of a rank's state more
  std::uint64_t keep = 2;   // whole checkpoints that stay; 0: all
  std::string resume;       // a folder; empty: from step 0
};

// All calls are collective, the constructor too. Rank 0 writes notes to stderr.
class Checkpointing {
 public:
  Checkpointing(const CheckpointOptions& options, std::uint64_t seed, ZeroOptimizer& optimizer, Communicator& world,
                Device& device);

  // Loads what there is; the number of steps that were done. ConfigError for a checkpoint of another model or seed.
  std::uint64_t resume();
  // After `done` steps, of which more follow or not.
  void after_step(std::uint64_t done, bool last);
  // Of the buffer that --save-background needs.
  Bytes planned_snapshot() const;

 private:
  std::string save(std::uint64_t done, bool last);

  const CheckpointOptions& options_;
  std::uint64_t seed_;
  ZeroOptimizer& optimizer_;
  Communicator& world_;
  PosixFiles files_;
  std::optional<BackgroundSave> background_;
};

}  // namespace shardplan::train
