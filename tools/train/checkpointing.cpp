#include "tools/train/checkpointing.h"

#include <fmt/format.h>

#include <cstdio>

#include "base/error.h"
#include "planner/formats/json.h"
#include "planner/formats/json_writer.h"
#include "planner/snapshot.h"
#include "shard/checkpoint/checkpoint.h"

namespace shardplan::train {
namespace {

// The position in the data: its order is a function of (seed, step, micro-batch, rank) alone (text.h). Steps that were
// skipped count here, and not among the optimizer's.
std::string client_blob(std::uint64_t seed, std::uint64_t done) {
  return JsonWriter().add("seed", seed).add("steps_done", done).finish();
}

std::uint64_t steps_done(const std::string& blob, std::uint64_t seed, const std::string& source) {
  if (blob.empty()) return 0;  // imported weights
  const JsonDocument document(blob, source);
  const std::uint64_t saved = document.root()["seed"].as_count();
  if (saved != seed) {
    throw ConfigError("--seed", "", fmt::format("{}, while {} was saved with {}", seed, source, saved));
  }
  return document.root()["steps_done"].as_count();
}

}  // namespace

Checkpointing::Checkpointing(const CheckpointOptions& options, std::uint64_t seed, ZeroOptimizer& optimizer,
                             Communicator& world, Device& device)
    : options_(options), seed_(seed), optimizer_(optimizer), world_(world) {
  if (options.background && !options.save.empty()) background_.emplace(optimizer, world, files_, device);
}

Bytes Checkpointing::planned_snapshot() const {
  return background_ ? snapshot_bytes(optimizer_.plan()) : 0_B;
}

std::uint64_t Checkpointing::resume() {
  if (options_.resume.empty()) return 0;
  const LoadReport report = load_checkpoint(optimizer_, world_, files_, options_.resume);
  if (world_.rank() == 0) {
    for (const std::string& note : report.notes) fmt::print(stderr, "shardplan-train: passed over: {}\n", note);
    if (report.name.empty()) {
      fmt::print(stderr, "shardplan-train: no whole checkpoint in {}: starts from step 0\n", options_.resume);
    }
  }
  if (report.name.empty()) return 0;
  return steps_done(report.client, seed_, join_path(options_.resume, report.name));
}

void Checkpointing::after_step(std::uint64_t done, bool last) {
  if (options_.save.empty()) return;
  if (background_) background_->poll();  // what went wrong is told here
  const bool due = options_.every != 0 && done % options_.every == 0;
  if (!due && !last) return;
  const std::string name = save(done, last);
  if (last && world_.rank() == 0) {
    fmt::print(stderr, "shardplan-train: saved {} after step {}\n", join_path(options_.save, name), done);
  }
}

// In the background: the last one is waited for, the others' names are not known yet.
std::string Checkpointing::save(std::uint64_t done, bool last) {
  const SaveOptions options{.client = client_blob(seed_, done), .keep = options_.keep};
  if (!background_) return save_checkpoint(optimizer_, world_, files_, options_.save, options);
  background_->start(options_.save, options);
  if (last) background_->finish();
  return background_->published();
}

}  // namespace shardplan::train
