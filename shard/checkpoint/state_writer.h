// Writes state into safetensors files as it comes: one file per dtype, slices in the order in which they were announced.
//
// Holds two buffers per file beyond what it is given: one is filled while the other is written. Digests are of the bytes in memory, taken before they are written.
// Nothing is published: see folder.h. Throws IoError. Threads: one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/files/background.h"
#include "runtime/files/files.h"
#include "shard/checkpoint/manifest.h"

namespace shardplan {

// A slice that will come.
struct AnnouncedSlice {
  std::uint64_t tensor = 0;
  StateKind kind = StateKind::parameter;
  std::uint64_t first = 0;
  std::uint64_t elements = 0;
  DType dtype = DType::f32;
};

// A file that is written from its beginning to its end, every write but the last aligned, by a thread of its own: what it
// fails with is thrown by a later call.
class BufferedOutput {
 public:
  // Two buffers of `buffer_bytes` each.
  BufferedOutput(Files& files, const std::string& path, std::size_t buffer_bytes);
  void append(std::span<const std::byte> bytes);
  // Writes the rest and syncs.
  void finish();
  std::uint64_t bytes() const { return written_ + used_; }

 private:
  std::unique_ptr<OutputFile> file_;
  FileBuffer filling_;
  FileBuffer writing_;
  std::size_t used_ = 0;
  std::uint64_t written_ = 0;
  std::unique_ptr<Background> writer_;  // the last member: its thread uses the others
};

class StateWriter {
 public:
  struct Options {
    std::string folder;
    std::string prefix;  // of the files' names: "rank-00003"
    std::uint64_t block_bytes = kCheckpointBlock;
    std::size_t buffer_bytes = kCheckpointBlock;
  };

  // Makes the files and writes their headers. `table` must outlive the writer. Throws ConfigError for a dtype that the
  // format does not have.
  StateWriter(Files& files, const std::vector<TensorEntry>& table, std::span<const AnnouncedSlice> slices,
              const Options& options);

  // The next elements of the next slice of this dtype: CheckFailure for anything else.
  void append(const StateRange& range, const ConstElements& values);
  // Syncs. CheckFailure if a slice is not complete.
  std::vector<CheckpointFile> finish();

 private:
  struct Stream {
    CheckpointFile file;
    BufferedOutput output;
    std::size_t slice = 0;         // that is being written
    std::uint64_t slice_done = 0;  // bytes of it
    Hasher block;
  };

  Stream& stream_of(DType dtype);
  void add_bytes(Stream& stream, std::span<const std::byte> bytes) const;

  std::uint64_t block_bytes_;
  std::vector<Stream> streams_;
};

}  // namespace shardplan
