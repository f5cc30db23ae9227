// Saving while training goes on: the state is copied into a planned buffer, and written from there by another thread.
//
//   BackgroundSave saving(optimizer, world, files, device);           // allocates snapshot_bytes(plan), once
//   ... after a step: saving.start(folder, {.client = position});     // copies; training may go on
//   ... after each later step: saving.poll();                         // publishes when all ranks have written
//   ... at the end: saving.finish();
//
// At most one save is under way: start() finishes the one before it. What goes wrong in the background is thrown by the
// next poll(), start() or finish(), on every rank, as save_checkpoint() would. All calls but the destructor are
// collective; the destructor waits for its thread, and what was not published is not there.
#pragma once

#include <memory>
#include <string>

#include "runtime/files/background.h"
#include "runtime/files/files.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/folder.h"

namespace shardplan {

class BackgroundSave {
 public:
  // All must outlive it. Throws OutOfMemory.
  BackgroundSave(ZeroOptimizer& optimizer, Communicator& world, Files& files, Device& device);
  ~BackgroundSave();

  void start(const std::string& folder, const SaveOptions& options);
  // Publishes, if every rank has written its part. True where no save is under way any more.
  bool poll();
  void finish();
  bool under_way() const { return !checkpoint_.name.empty(); }
  // Of the last one that was published; empty before.
  const std::string& published() const { return published_; }

 private:
  void publish();

  ZeroOptimizer& optimizer_;
  Communicator& world_;
  Files& files_;
  std::string folder_;  // of the save that is under way
  Bytes bytes_;
  std::unique_ptr<Memory> snapshot_;
  OpenCheckpoint checkpoint_;  // without a name: none is under way
  Manifest manifest_;
  std::string file_texts_;  // of this rank's files, once they are written
  std::uint64_t keep_ = 0;
  std::string published_;
  Background writer_;  // the last member: its thread uses the others
};

}  // namespace shardplan
