#include "shard/checkpoint/state_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "planner/formats/safetensors.h"

namespace shardplan {

BufferedOutput::BufferedOutput(Files& files, const std::string& path, std::uint64_t bytes, std::size_t buffer_bytes) {
  std::unique_ptr<OutputFile> file = files.create(path);
  file->reserve(bytes);
  file_ = std::make_unique<WriteBehind>(std::move(file), buffer_bytes, kOutputBuffers);
}

void BufferedOutput::append(std::span<const std::byte> bytes) {
  bytes_ += bytes.size();
  while (!bytes.empty()) {
    if (room_.empty()) room_ = file_->room();
    const std::span<std::byte> free = room_.subspan(used_);
    const std::size_t count = std::min(free.size(), bytes.size());
    std::memcpy(free.data(), bytes.data(), count);
    bytes = bytes.subspan(count);
    used_ += count;
    if (used_ < room_.size()) continue;
    file_->hand_in(used_);
    room_ = {};
    used_ = 0;
  }
}

void BufferedOutput::finish() {
  if (used_ > 0) file_->hand_in(used_);
  room_ = {};
  used_ = 0;
  file_->finish();
}

namespace {

// The entries of one dtype's file, in order.
std::vector<SafetensorsTensor> entries_of(std::span<const AnnouncedSlice> slices, const std::vector<TensorEntry>& table,
                                          DType dtype) {
  std::vector<SafetensorsTensor> entries;
  for (const AnnouncedSlice& slice : slices) {
    if (slice.dtype != dtype) continue;
    const TensorEntry& tensor = table[slice.tensor];
    const bool whole = slice.elements == tensor.elements;
    entries.push_back({.name = slice_name(slice.kind, tensor.name, slice.first, slice.elements),
                       .dtype = dtype,
                       .shape = whole ? tensor.shape : Shape{slice.elements}});
  }
  return entries;
}

}  // namespace

StateWriter::StateWriter(Files& files, const std::vector<TensorEntry>& table, std::span<const AnnouncedSlice> slices,
                         const Options& options)
    : block_bytes_(options.block_bytes) {
  const std::pair<std::string, std::string> metadata[] = {{"format", "shardplan-checkpoint"}};
  std::vector<DType> dtypes;
  for (const AnnouncedSlice& slice : slices) {
    if (std::find(dtypes.begin(), dtypes.end(), slice.dtype) == dtypes.end()) dtypes.push_back(slice.dtype);
  }
  for (const DType dtype : dtypes) {
    std::vector<SafetensorsTensor> entries = entries_of(slices, table, dtype);
    const std::string beginning = safetensors_beginning(entries, metadata);
    CheckpointFile file{.name = fmt::format("{}-{}.safetensors", options.prefix, name(dtype)),
                        .dtype = dtype,
                        .bytes = 0,
                        .data_begin = beginning.size(),
                        .header = digest_of(std::as_bytes(std::span(beginning))),
                        .slices = {},
                        .blocks = {}};
    std::uint64_t begin = beginning.size();
    std::size_t blocks = 0;
    for (const AnnouncedSlice& slice : slices) {
      if (slice.dtype != dtype) continue;
      file.slices.push_back({slice.tensor, slice.kind, slice.first, slice.elements, begin, blocks});
      const std::uint64_t slice_bytes = bytes_for(dtype, slice.elements).count();
      begin += slice_bytes;
      blocks += block_count(slice_bytes, block_bytes_);
    }
    file.bytes = begin;
    file.blocks.reserve(blocks);
    BufferedOutput output(files, join_path(options.folder, file.name), file.bytes, options.buffer_bytes);
    output.append(std::as_bytes(std::span(beginning)));
    streams_.push_back({.file = std::move(file), .output = std::move(output), .block = {}});
  }
}

StateWriter::Stream& StateWriter::stream_of(DType dtype) {
  const auto found =
      std::find_if(streams_.begin(), streams_.end(), [&](const Stream& stream) { return stream.file.dtype == dtype; });
  SHARDPLAN_CHECK(found != streams_.end(), fmt::format("no slice of {} was announced", name(dtype)));
  return *found;
}

void StateWriter::append(const StateRange& range, const ConstElements& values) {
  if (values.elements == 0) return;
  Stream& stream = stream_of(values.dtype);
  SHARDPLAN_CHECK(stream.slice < stream.file.slices.size(), "a slice that was not announced");
  const Slice& slice = stream.file.slices[stream.slice];
  const std::uint64_t done = bytes_for(values.dtype, range.first - slice.first).count();
  SHARDPLAN_CHECK(
      range.tensor == slice.tensor && range.kind == slice.kind && done == stream.slice_done &&
          range.first + values.elements <= slice.first + slice.elements,
      fmt::format("{} is not what comes next", slice_name(range.kind, range.name, range.first, values.elements)));
  add_bytes(stream, {values.data, bytes_for(values.dtype, values.elements).count()});
}

// Cut where blocks end.
void StateWriter::add_bytes(Stream& stream, std::span<const std::byte> bytes) const {
  const std::uint64_t slice_bytes = bytes_for(stream.file.dtype, stream.file.slices[stream.slice].elements).count();
  while (!bytes.empty()) {
    const std::uint64_t left = block_bytes_ - stream.slice_done % block_bytes_;
    const std::span<const std::byte> part = bytes.first(std::min<std::uint64_t>(left, bytes.size()));
    stream.block.add(part);
    stream.output.append(part);
    stream.slice_done += part.size();
    bytes = bytes.subspan(part.size());
    if (stream.slice_done % block_bytes_ == 0 || stream.slice_done == slice_bytes) {
      stream.file.blocks.push_back(stream.block.finish());
    }
  }
  if (stream.slice_done < slice_bytes) return;
  ++stream.slice;
  stream.slice_done = 0;
}

std::vector<CheckpointFile> StateWriter::finish() {
  std::vector<CheckpointFile> files;
  for (Stream& stream : streams_) {
    SHARDPLAN_CHECK(stream.slice == stream.file.slices.size() && stream.output.bytes() == stream.file.bytes,
                    fmt::format("{} is not complete", stream.file.name));
    stream.output.finish();
    files.push_back(std::move(stream.file));
  }
  streams_.clear();
  return files;
}

}  // namespace shardplan
