// Weights of Hugging Face's safetensors files as a checkpoint to start from.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "base/error.h"
#include "planner/formats/safetensors.h"
#include "shard/checkpoint/folder.h"
#include "shard/checkpoint/state_writer.h"
#include "tools/checkpoint/commands.h"

namespace shardplan::checkpoint_tool {
namespace {

constexpr std::uint64_t kPart = 1 << 20;  // bytes on their way

bool is_weight(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

}  // namespace

std::string import_weights(Files& files, const std::string& source, const std::string& out) {
  Manifest manifest;
  manifest.content = CheckpointContent::weights;
  manifest.catalog = model_from_safetensors(source).catalog;
  std::unordered_map<std::string, StoredTensorPlace> places;
  for (StoredTensorPlace& place : tensors_in_safetensors(source)) places.emplace(place.tensor.name, std::move(place));

  const std::vector<TensorEntry> table = tensor_table(manifest.catalog);
  std::vector<AnnouncedSlice> slices;
  for (std::uint64_t i = 0; i < table.size(); ++i) {
    const StoredTensorPlace& place = places.at(table[i].name);
    if (!is_weight(place.tensor.dtype)) {
      throw ConfigError(place.path, table[i].name,
                        fmt::format("is in {}: expected fp32, bf16 or fp16", name(place.tensor.dtype)));
    }
    if (table[i].elements == 0) continue;
    slices.push_back({i, StateKind::parameter, 0, table[i].elements, place.tensor.dtype});
  }
  const OpenCheckpoint open = begin_checkpoint(files, out, 0);
  StateWriter writer(files, table, slices, {.folder = open.working_folder(), .prefix = "weights"});
  std::map<std::string, std::unique_ptr<InputFile>> inputs;
  std::vector<std::byte> bytes(kPart);
  for (const AnnouncedSlice& slice : slices) {
    const StoredTensorPlace& place = places.at(table[slice.tensor].name);
    std::unique_ptr<InputFile>& input = inputs[place.path];
    if (!input) input = files.open(place.path);
    const std::uint64_t part = kPart / (bits(slice.dtype) / 8);
    for (std::uint64_t done = 0; done < slice.elements; done += part) {
      const std::uint64_t count = std::min(part, slice.elements - done);
      const std::uint64_t length = bytes_for(slice.dtype, count).count();
      input->read(place.data_begin + place.tensor.begin + bytes_for(slice.dtype, done).count(),
                  std::span(bytes).first(length));
      writer.append({table[slice.tensor].name, slice.tensor, slice.kind, done},
                    ConstElements(slice.dtype, bytes.data(), count));
    }
  }
  manifest.files = writer.finish();
  publish_checkpoint(files, open, manifest_text(manifest));
  return open.name;
}

}  // namespace shardplan::checkpoint_tool
