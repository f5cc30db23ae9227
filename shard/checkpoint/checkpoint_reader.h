// Reads a checkpoint's values, in any ranges: every byte is checked against its digest before it is given to anybody.
//
// Holds the manifest, one block for each kind of state, and kOpenFiles times kInputBuffers buffers of kCheckpointBlock that are
// read ahead: 64 MiB and some pages where blocks are of that size, as all that is written here. Throws CheckpointError and IoError, which name the file, and the tensor where it is one's bytes. Threads: one;
// several readers may read one checkpoint.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/files/files.h"
#include "runtime/files/read_ahead.h"
#include "shard/checkpoint/manifest.h"

namespace shardplan {

// A file is copied from one buffer while the others are read.
inline constexpr std::size_t kInputBuffers = 3;
// Files that are read ahead at a time: two of each of the dtypes that most policies have.
inline constexpr std::size_t kOpenFiles = 4;

class CheckpointReader {
 public:
  // Reads and checks the manifest, and that every file is there and as long as it says.
  CheckpointReader(Files& files, std::string folder);

  const Manifest& manifest() const { return manifest_; }
  const std::string& folder() const { return folder_; }
  // In the order of the manifest's catalog.
  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  std::optional<std::uint64_t> find(std::string_view whole_name) const;
  // In which a tensor's state of that kind is stored; nothing where there is none.
  std::optional<DType> dtype_of(std::uint64_t tensor, StateKind kind) const;

  // `to.elements` elements from `first` on, of a tensor of the manifest's catalog, in the dtype that they are stored in.
  // CheckFailure for elements that are not there.
  void read(std::uint64_t tensor, StateKind kind, std::uint64_t first, const Elements& to);

  // Checks the header of a file, and its blocks [first, end) of CheckpointFile::blocks; calls bad(tensor's slice, what is
  // wrong) for each that is not as it was written; of the header, with the slice's name empty. Any number of threads.
  using Bad = std::function<void(const std::string& slice, const std::string& problem)>;
  void verify_header(std::size_t file, const Bad& bad) const;
  void verify_blocks(std::size_t file, std::size_t first, std::size_t end, const Bad& bad) const;

 private:
  struct Part {
    std::uint64_t tensor;
    StateKind kind;
    std::uint64_t first;
    std::uint32_t file;
    std::uint32_t slice;
  };
  // A block whose digest is right.
  struct Cached {
    const Slice* slice = nullptr;
    std::uint64_t block = 0;
    std::vector<std::byte> bytes;
  };
  struct Opened {
    std::uint32_t file = 0;
    std::unique_ptr<ReadAhead> input;  // null: none
  };

  std::string path_of(const CheckpointFile& file) const { return join_path(folder_, file.name); }
  const Part* part_holding(std::uint64_t tensor, StateKind kind, std::uint64_t element) const;
  std::unique_ptr<ReadAhead> open_blocks(std::size_t file, std::uint64_t begin, std::uint64_t end) const;
  ReadAhead& opened(std::uint32_t file);
  const Cached& block(const Part& part, std::uint64_t index);
  std::string name_of(const Slice& slice) const;

  Files& files_;
  std::string folder_;
  Manifest manifest_;
  std::vector<TensorEntry> tensors_;
  std::unordered_map<std::string_view, std::uint64_t> by_name_;
  std::vector<Part> parts_;                  // by tensor, kind and element
  std::vector<bool> header_is_good_;         // by file
  std::array<Opened, kOpenFiles> opened_{};  // the last one used first
  std::array<Cached, kStateKinds> cache_;
};

}  // namespace shardplan
