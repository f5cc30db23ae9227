#include "shard/checkpoint/checkpoint_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

// The header, or a whole block, and whether it is what was written.
std::string difference(std::span<const std::byte> bytes, const Digest& expected) {
  const Digest found = digest_of(bytes);
  return found == expected ? "" : fmt::format("has the digest {}: expected {}", hex(found), hex(expected));
}

struct BlockRange {
  const Slice* slice;
  std::uint64_t begin;  // in the file
  std::uint64_t bytes;
};

// Of a block of CheckpointFile::blocks: its slice is the last that begins at it or before.
BlockRange range_of_block(const CheckpointFile& file, std::size_t index, std::uint64_t block_bytes) {
  const auto after = std::upper_bound(file.slices.begin(), file.slices.end(), index,
                                      [](std::size_t block, const Slice& s) { return block < s.first_block; });
  const Slice& slice = *(after - 1);
  const std::uint64_t block = index - slice.first_block;
  const std::uint64_t slice_bytes = bytes_for(file.dtype, slice.elements).count();
  return {&slice, slice.begin + block * block_bytes, bytes_of_block(slice_bytes, block_bytes, block)};
}

}  // namespace

CheckpointReader::CheckpointReader(Files& files, std::string folder) : files_(files), folder_(std::move(folder)) {
  const std::string path = join_path(folder_, kManifestName);
  manifest_ = parse_manifest(read_whole(files_, path, kLargestManifest), path);
  for (const CheckpointFile& file : manifest_.files) {
    const std::uint64_t bytes = files_.open(path_of(file))->bytes();
    if (bytes == file.bytes) continue;
    throw CheckpointError(path_of(file), fmt::format("has {} bytes: expected {}", bytes, file.bytes));
  }
  tensors_ = tensor_table(manifest_.catalog);
  for (std::uint64_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
  for (std::uint32_t f = 0; f < manifest_.files.size(); ++f) {
    const std::vector<Slice>& slices = manifest_.files[f].slices;
    for (std::uint32_t s = 0; s < slices.size(); ++s) {
      parts_.push_back({slices[s].tensor, slices[s].kind, slices[s].first, f, s});
    }
  }
  std::sort(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) {
    return std::tie(a.tensor, a.kind, a.first) < std::tie(b.tensor, b.kind, b.first);
  });
  header_is_good_.resize(manifest_.files.size());
}

std::optional<std::uint64_t> CheckpointReader::find(std::string_view whole_name) const {
  const auto found = by_name_.find(whole_name);
  if (found == by_name_.end()) return std::nullopt;
  return found->second;
}

// The last part that begins at or before the element: parts of a kind tile the tensor (parse_manifest).
const CheckpointReader::Part* CheckpointReader::part_holding(std::uint64_t tensor, StateKind kind,
                                                             std::uint64_t element) const {
  const auto after = std::upper_bound(
      parts_.begin(), parts_.end(), std::tuple(tensor, kind, element),
      [](const auto& key, const Part& part) { return key < std::tuple(part.tensor, part.kind, part.first); });
  if (after == parts_.begin()) return nullptr;
  const Part& part = *(after - 1);
  return part.tensor == tensor && part.kind == kind ? &part : nullptr;
}

std::optional<DType> CheckpointReader::dtype_of(std::uint64_t tensor, StateKind kind) const {
  const Part* const part = part_holding(tensor, kind, 0);
  if (part == nullptr) return std::nullopt;
  return manifest_.files[part->file].dtype;
}

std::string CheckpointReader::name_of(const Slice& slice) const {
  return slice_name(slice.kind, tensors_[slice.tensor].name, slice.first, slice.elements);
}

// For bytes [begin, end) of it.
std::unique_ptr<ReadAhead> CheckpointReader::open_blocks(std::size_t file, std::uint64_t begin,
                                                         std::uint64_t end) const {
  const std::uint64_t block = std::min({manifest_.block_bytes, kCheckpointBlock, end - begin});
  const std::uint64_t buffer = (block / kFileAlignment + 1) * kFileAlignment;
  return std::make_unique<ReadAhead>(files_.open(path_of(manifest_.files[file])), end, buffer, kInputBuffers);
}

// With its header checked.
ReadAhead& CheckpointReader::opened(std::uint32_t file) {
  auto place = std::find_if(opened_.begin(), opened_.end(), [&](const Opened& o) { return o.input && o.file == file; });
  if (place == opened_.end()) {
    const CheckpointFile& known = manifest_.files[file];
    if (!header_is_good_[file]) {
      verify_header(file, [&](const std::string&, const std::string& problem) {
        throw CheckpointError(path_of(known), problem);
      });
      header_is_good_[file] = true;
    }
    --place;  // the one that was not used for the longest time
    place->input.reset();
    place->input = open_blocks(file, known.data_begin, known.bytes);
    place->file = file;
  }
  std::rotate(opened_.begin(), place, place + 1);
  return *opened_.front().input;
}

const CheckpointReader::Cached& CheckpointReader::block(const Part& part, std::uint64_t index) {
  const CheckpointFile& file = manifest_.files[part.file];
  const Slice& slice = file.slices[part.slice];
  Cached& cached = cache_.at(static_cast<std::size_t>(part.kind));
  if (cached.slice == &slice && cached.block == index) return cached;
  cached.slice = nullptr;
  const std::uint64_t slice_bytes = bytes_for(file.dtype, slice.elements).count();
  cached.bytes.resize(bytes_of_block(slice_bytes, manifest_.block_bytes, index));
  const std::uint64_t begin = slice.begin + index * manifest_.block_bytes;
  opened(part.file).read(begin, cached.bytes);
  const std::string problem = difference(cached.bytes, file.blocks[slice.first_block + index]);
  if (!problem.empty()) {
    throw CheckpointError(path_of(file), fmt::format("{}: block {} {}", name_of(slice), index, problem));
  }
  cached.slice = &slice;
  cached.block = index;
  return cached;
}

void CheckpointReader::read(std::uint64_t tensor, StateKind kind, std::uint64_t first, const Elements& to) {
  for (std::uint64_t done = 0; done < to.elements;) {
    const Part* const part = part_holding(tensor, kind, first + done);
    SHARDPLAN_CHECK(part != nullptr, "a read of state that is not there");
    const CheckpointFile& file = manifest_.files[part->file];
    const Slice& slice = file.slices[part->slice];
    SHARDPLAN_CHECK(file.dtype == to.dtype && first + done - slice.first < slice.elements,
                    "a read beyond the tensor, or in another dtype");
    const std::uint64_t at = bytes_for(file.dtype, first + done - slice.first).count();
    const Cached& cached = block(*part, at / manifest_.block_bytes);
    const std::uint64_t in_block = at % manifest_.block_bytes;
    const std::uint64_t count =
        std::min(bytes_for(to.dtype, to.elements - done).count(), cached.bytes.size() - in_block);
    std::memcpy(to.data + bytes_for(to.dtype, done).count(), cached.bytes.data() + in_block, count);
    done += count * 8 / bits(to.dtype);
  }
}

void CheckpointReader::verify_header(std::size_t index, const Bad& bad) const {
  const CheckpointFile& file = manifest_.files[index];
  std::vector<std::byte> bytes(file.data_begin);
  files_.open(path_of(file))->read(0, bytes);
  if (const std::string problem = difference(bytes, file.header); !problem.empty()) bad("", "its header " + problem);
}

void CheckpointReader::verify_blocks(std::size_t index, std::size_t first, std::size_t end, const Bad& bad) const {
  if (first >= end) return;
  const CheckpointFile& file = manifest_.files[index];
  const std::uint64_t block_bytes = manifest_.block_bytes;
  const BlockRange last = range_of_block(file, end - 1, block_bytes);
  const std::unique_ptr<ReadAhead> input =
      open_blocks(index, range_of_block(file, first, block_bytes).begin, last.begin + last.bytes);
  std::vector<std::byte> bytes;
  for (std::size_t i = first; i < end; ++i) {
    const BlockRange range = range_of_block(file, i, block_bytes);
    bytes.resize(range.bytes);
    input->read(range.begin, bytes);
    const std::string problem = difference(bytes, file.blocks[i]);
    if (problem.empty()) continue;
    bad(name_of(*range.slice), fmt::format("block {} {}", i - range.slice->first_block, problem));
  }
}

}  // namespace shardplan
