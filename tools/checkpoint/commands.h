// What shardplan-checkpoint does, without its command line. All of it streams: a tensor, a block and a buffer at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/files/files.h"
#include "shard/checkpoint/checkpoint_reader.h"

namespace shardplan::checkpoint_tool {

// The checkpoint that `path` is, or the one that a resume from this folder would take. CheckpointError where none is
// whole, with what is wrong with each.
std::string checkpoint_at(Files& files, const std::string& path);

// `path` is a checkpoint, or a folder of them: all of it is verified, on `threads` threads.
struct Flaw {
  std::string file;
  std::string slice;  // empty: of the manifest, a header, or the file as a whole
  std::string problem;
};
struct Verified {
  std::uint64_t checkpoints = 0;
  std::uint64_t bytes = 0;
  std::vector<Flaw> flaws;
};
Verified verify(Files& files, const std::string& path, unsigned threads);

struct ConsolidateOptions {
  std::optional<DType> dtype{};               // fp32, bf16, fp16; empty: as it is stored
  bool ema = false;                           // the moving averages in the place of the parameters, where there are any
  std::uint64_t shard_bytes = 5'000'000'000;  // of one file's tensors, as Hugging Face cuts them
};
// Writes the folder `out`, which must not exist: model.safetensors, or shards and their index. Frozen and trained tensors,
// without tied ones. Returns the names of the files.
std::vector<std::string> consolidate(Files& files, const std::string& checkpoint, const std::string& out,
                                     const ConsolidateOptions& options);

// Publishes in the folder `out` what `ranks` ranks would have saved. Returns its name.
std::string reshard(Files& files, const std::string& checkpoint, const std::string& out, std::uint64_t ranks);

// Publishes in the folder `out` the weights of safetensors files (a file, an index, or a folder of them): initial values
// for a --resume. Returns its name.
std::string import_weights(Files& files, const std::string& source, const std::string& out);

}  // namespace shardplan::checkpoint_tool
