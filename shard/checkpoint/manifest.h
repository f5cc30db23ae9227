// The manifest of a checkpoint: everything that is not values. docs/checkpoints.md has the format, byte by byte.
//
// A checkpoint is a folder: manifest.json, and safetensors files. A file holds slices, one after the other and all of one
// dtype: some elements of one kind of state of one tensor. Which rank wrote a slice means nothing; together they hold
// every element once. Each slice is cut into blocks, and each block, each header and the manifest itself has a digest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "planner/setup.h"
#include "shard/checkpoint/digest.h"
#include "shard/options.h"
#include "shard/state.h"

namespace shardplan {

inline constexpr std::uint64_t kCheckpointVersion = 1;
inline constexpr std::string_view kManifestName = "manifest.json";
// Bytes of a slice that are read, and checked, at once.
inline constexpr std::uint64_t kCheckpointBlock = std::uint64_t{4} << 20;
inline constexpr std::uint64_t kLargestCheckpointBlock = std::uint64_t{64} << 20;
inline constexpr std::uint64_t kLargestManifest = std::uint64_t{1} << 30;
inline constexpr std::uint64_t kMostCheckpointTensors = std::uint64_t{1} << 20;
inline constexpr std::uint64_t kLargestClientBlob = std::uint64_t{16} << 20;

enum class CheckpointContent : std::uint8_t {
  state,    // all that training goes on from, in the dtypes that it was held in
  weights,  // parameters alone, in any of fp32, bf16, fp16: initial values
};
std::string_view name(CheckpointContent content);

struct Slice {
  std::uint64_t tensor = 0;  // place in the catalog's order, tied ones counted
  StateKind kind = StateKind::parameter;
  std::uint64_t first = 0;  // element
  std::uint64_t elements = 0;
  std::uint64_t begin = 0;      // byte in the file
  std::size_t first_block = 0;  // in CheckpointFile::blocks
  bool operator==(const Slice&) const = default;
};

struct CheckpointFile {
  std::string name;  // beside the manifest
  DType dtype = DType::f32;
  std::uint64_t bytes = 0;
  std::uint64_t data_begin = 0;  // length and header come first
  Digest header;                 // of the bytes before data_begin
  std::vector<Slice> slices;
  std::vector<Digest> blocks;  // of all slices, in order
  bool operator==(const CheckpointFile&) const = default;
};

// For those who read it; a load takes none of it.
struct SavedBy {
  std::uint64_t world_size = 1;
  std::uint64_t replicate = 1;
  int stage = 0;
  Policy policy;
  OptimizerKind optimizer = OptimizerKind::adamw;
  std::vector<ParameterGroup> groups;
  double clip_norm = 0;
  bool operator==(const SavedBy&) const;
};

struct Manifest {
  CheckpointContent content = CheckpointContent::state;
  StepState step;
  Catalog catalog;  // names, shapes, units; what a reader of models notes is left out
  SavedBy saved_by;
  std::string client;  // bytes of the client's own
  std::uint64_t block_bytes = kCheckpointBlock;
  std::vector<CheckpointFile> files;
};

// A tensor by its place in the catalog's order.
struct TensorEntry {
  std::string name;
  Shape shape;
  std::uint64_t elements = 0;
  bool tied = false;
};
std::vector<TensorEntry> tensor_table(const Catalog& catalog);

// How many blocks, and the bytes of one of them.
std::uint64_t block_count(std::uint64_t slice_bytes, std::uint64_t block_bytes);
std::uint64_t bytes_of_block(std::uint64_t slice_bytes, std::uint64_t block_bytes, std::uint64_t block);

// "parameter/blocks.0.weight[0:64]": what a slice is called in its file, and in errors.
std::string slice_name(StateKind kind, std::string_view tensor, std::uint64_t first, std::uint64_t elements);

// A file's part of the text: each rank makes those of its own.
std::string file_text(const CheckpointFile& file);
// `files` are the file_texts, with ",\n" between them.
std::string manifest_text(const Manifest& manifest, std::string_view files);
std::string manifest_text(const Manifest& manifest);

// Checks the digest, the version, and that the slices are every element of the state once, each in a dtype that the
// format has: what it returns can be read by whoever trusts it. `path` names the text in errors. Throws CheckpointError.
Manifest parse_manifest(std::string_view text, const std::string& path);

}  // namespace shardplan
