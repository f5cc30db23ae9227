// Writes state into safetensors files as it comes: one file per dtype, slices in the order in which they were announced.
//
// Holds some buffers per file beyond what it is given: one is filled while others are written. Digests are of the bytes
// in memory, taken before they are written.
// Nothing is published: see folder.h. Throws IoError. Threads: one.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/files/files.h"
#include "runtime/files/write_behind.h"
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

// One is filled, one is written, and two wait, so that the disk never does.
inline constexpr std::size_t kOutputBuffers = 4;

// A file that is written from its beginning to its end, every write but the last aligned, by a thread of its own: what it
// fails with is thrown by a later call.
class BufferedOutput {
 public:
  // kOutputBuffers of `buffer_bytes` each, for a file that will have `bytes`.
  BufferedOutput(Files& files, const std::string& path, std::uint64_t bytes, std::size_t buffer_bytes);
  void append(std::span<const std::byte> bytes);
  // Writes the rest and syncs.
  void finish();
  std::uint64_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<WriteBehind> file_;
  std::span<std::byte> room_;  // that is being filled
  std::size_t used_ = 0;       // of it
  std::uint64_t bytes_ = 0;
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
