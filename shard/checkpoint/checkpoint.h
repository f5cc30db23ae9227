// Saving and resuming an optimizer's state, by all ranks of its world together.
//
//   save_checkpoint(optimizer, world, files, "checkpoints", {.client = position, .keep = 3});
//   ...
//   LoadReport report = load_checkpoint(optimizer, world, files, "checkpoints");    // any world, any stage
//   if (report.name.empty()) start from the initial values
//
// A checkpoint depends on the catalog and on the dtypes of the state, and on nothing else: not on world size, stage,
// hybrid sharding, or where anything lies. It is the old or the new one, as a whole, after a crash at any instant, and a
// file that is not what was written is found when it is read (docs/checkpoints.md).
//
// All ranks see one folder: on several machines, a file system that they share. Both calls are collective and happen
// between steps. A rank that fails makes all fail, with the same error; its peers wait for it as long as the
// communicator's deadline, which must be longer than ranks differ in writing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/files/files.h"
#include "shard/checkpoint/manifest.h"
#include "shard/zero_optimizer.h"

namespace shardplan {

struct SaveOptions {
  // The client's own: generators, the position in the data. Rank 0's is kept, at most 16 MiB.
  std::string client{};
  // How many whole checkpoints stay in the folder; 0: all. More costs disk alone.
  std::uint64_t keep = 0;
  // What a rank may hold beyond its arenas for values on their way (manifest and headers apart). Less makes smaller
  // writes. At least 4 MiB.
  Bytes memory = 64_MiB;
};

// Writes what this rank holds of the state, streaming; rank 0 publishes. Returns the checkpoint's name. Throws
// CheckpointError on every rank where one could not write: the folder is then as it was. ConfigError for options that
// are none.
std::string save_checkpoint(ZeroOptimizer& optimizer, Communicator& world, Files& files, const std::string& folder,
                            const SaveOptions& options = {});

struct LoadReport {
  std::string
      name;  // of the checkpoint, "." where the folder is one; empty: there was no whole one, and the optimizer has its initial values
  std::string client;              // as it was saved
  std::vector<std::string> notes;  // which checkpoints were passed over, and why
};

// Loads what `latest` names, or the newest that is whole; `folder` may be a checkpoint itself. Bounded by one block for
// each kind of state and one chunk. Throws ConfigError, naming the tensor, for a checkpoint of another model or of state
// in other dtypes, and loads no other in its place.
LoadReport load_checkpoint(ZeroOptimizer& optimizer, Communicator& world, Files& files, const std::string& folder);

}  // namespace shardplan
