// A checkpoint as the files that Hugging Face writes: whole tensors, by their own names.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "planner/formats/json_writer.h"
#include "planner/formats/safetensors.h"
#include "shard/checkpoint/state_writer.h"
#include "tools/checkpoint/commands.h"

namespace shardplan::checkpoint_tool {
namespace {

constexpr std::uint64_t kPart = 1 << 18;  // elements on their way

struct Stored {
  std::uint64_t tensor;
  StateKind kind;
  DType from;
  DType to;
  std::uint64_t bytes;
};

// What is written, in the catalog's order.
std::vector<Stored> tensors_of(const CheckpointReader& reader, const ConsolidateOptions& options) {
  std::vector<Stored> all;
  bool any_ema = false;
  for (std::uint64_t i = 0; i < reader.tensors().size(); ++i) {
    const TensorEntry& tensor = reader.tensors()[i];
    if (tensor.tied) continue;
    const auto ema = options.ema ? reader.dtype_of(i, StateKind::ema) : std::nullopt;
    any_ema = any_ema || ema.has_value();
    const StateKind kind = ema ? StateKind::ema : StateKind::parameter;
    const DType from = reader.dtype_of(i, kind).value_or(DType::f32);  // a tensor of 0 elements has none
    const bool floating = from == DType::f32 || from == DType::bf16 || from == DType::f16;
    const DType to = floating ? options.dtype.value_or(from) : from;
    all.push_back({i, kind, from, to, bytes_for(to, tensor.elements).count()});
  }
  if (options.ema && !any_ema) throw ConfigError(reader.folder(), "--ema", "this checkpoint has no moving averages");
  return all;
}

// Greedily, in order: a file that would become longer begins a new one.
std::vector<std::vector<Stored>> cut(const std::vector<Stored>& all, std::uint64_t shard_bytes) {
  std::vector<std::vector<Stored>> shards(1);
  std::uint64_t bytes = 0;
  for (const Stored& stored : all) {
    if (!shards.back().empty() && bytes + stored.bytes > shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(stored);
    bytes += stored.bytes;
  }
  return shards;
}

void write_values(CheckpointReader& reader, const Stored& stored, BufferedOutput& output) {
  const std::uint64_t elements = reader.tensors()[stored.tensor].elements;
  std::vector<std::byte> from(bytes_for(stored.from, std::min(elements, kPart)).count());
  std::vector<std::byte> to(stored.from == stored.to ? 0 : bytes_for(stored.to, std::min(elements, kPart)).count());
  for (std::uint64_t first = 0; first < elements; first += kPart) {
    const std::uint64_t count = std::min(kPart, elements - first);
    const Elements values(stored.from, from.data(), count);
    reader.read(stored.tensor, stored.kind, first, values);
    if (to.empty()) {
      output.append({from.data(), bytes_for(stored.from, count).count()});
      continue;
    }
    cast(Elements(stored.to, to.data(), count), values);
    output.append({to.data(), bytes_for(stored.to, count).count()});
  }
}

// In the reference writer's order: wide elements first, so that each tensor's data is aligned, then by name.
void write_file(Files& files, CheckpointReader& reader, const std::string& path, std::vector<Stored> shard) {
  std::sort(shard.begin(), shard.end(), [&](const Stored& a, const Stored& b) {
    return std::pair(bits(b.to), reader.tensors()[a.tensor].name) <
           std::pair(bits(a.to), reader.tensors()[b.tensor].name);
  });
  std::vector<SafetensorsTensor> entries;
  std::uint64_t bytes = 0;
  for (const Stored& stored : shard) {
    const TensorEntry& tensor = reader.tensors()[stored.tensor];
    entries.push_back({.name = tensor.name, .dtype = stored.to, .shape = tensor.shape});
    bytes += stored.bytes;
  }
  const std::pair<std::string, std::string> metadata[] = {{"format", "pt"}};
  const std::string beginning = safetensors_beginning(entries, metadata);
  BufferedOutput output(files, path, beginning.size() + bytes, kCheckpointBlock);
  output.append(std::as_bytes(std::span(beginning)));
  for (const Stored& stored : shard) write_values(reader, stored, output);
  output.finish();
}

}  // namespace

std::vector<std::string> consolidate(Files& files, const std::string& checkpoint, const std::string& out,
                                     const ConsolidateOptions& options) {
  if (files.exists(out)) throw ConfigError(out, "", "is there already: expected the name of a new folder");
  CheckpointReader reader(files, checkpoint);
  const std::vector<std::vector<Stored>> shards = cut(tensors_of(reader, options), options.shard_bytes);
  const std::string working = out + ".saving";
  make_folders(files, parent_folder(out));
  files.make_folder(working);
  std::vector<std::string> names;
  JsonWriter index;
  std::uint64_t total = 0;
  for (const auto& shard : shards) {
    for (const Stored& stored : shard) total += stored.bytes;
  }
  index.open("metadata").add("total_size", total).close().open("weight_map");
  for (std::size_t i = 0; i < shards.size(); ++i) {
    names.push_back(shards.size() == 1 ? "model.safetensors"
                                       : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
    write_file(files, reader, join_path(working, names.back()), shards[i]);
    for (const Stored& stored : shards[i])
      index.add(reader.tensors()[stored.tensor].name, std::string_view(names.back()));
  }
  if (shards.size() > 1) {
    names.emplace_back("model.safetensors.index.json");
    write_whole(files, join_path(working, names.back()), index.finish());
  }
  files.sync_folder(working);
  files.rename(working, out);
  files.sync_folder(parent_folder(out));
  return names;
}

}  // namespace shardplan::checkpoint_tool
