// The parts of a save, which may wait for each other or not: checkpoint.h and background_save.h put them together.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/folder.h"
#include "shard/checkpoint/state_writer.h"

namespace shardplan {

// Throws ConfigError for options that are none.
void check_options(const SaveOptions& options);
// A buffer of each file, from what a rank may hold.
std::size_t buffer_bytes(Bytes memory);
Manifest manifest_of(const ZeroOptimizer& optimizer, const std::string& client);
// Collective: the working folder, on every rank.
OpenCheckpoint begin_together(Communicator& world, Files& files, const std::string& folder, std::uint64_t step);
std::vector<AnnouncedSlice> announced_slices(const ZeroOptimizer& optimizer);

struct RankFiles {
  std::string folder;
  int rank = 0;
  std::size_t buffer = 0;
};
// Writes the slices, whose values `give` hands to the writer in their order; returns the files' part of the manifest.
std::string write_rank(Files& files, const std::vector<TensorEntry>& table, const std::vector<AnnouncedSlice>& slices,
                       const RankFiles& where, const std::function<void(StateWriter&)>& give);
// Collective: rank 0 gathers the parts and publishes.
void publish_together(Communicator& world, Files& files, const OpenCheckpoint& checkpoint, const Manifest& manifest,
                      const std::string& file_texts, std::uint64_t keep);

}  // namespace shardplan
