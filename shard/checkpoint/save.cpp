#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "shard/checkpoint/save_parts.h"
#include "shard/checkpoint/together.h"

namespace shardplan {
namespace {

constexpr Bytes kLeastMemory = 4_MiB;
constexpr std::size_t kLargestBuffer = 8 << 20;
// Of a rank's files: fp32, bf16 and fp16 at most, and room for the optimizer's own chunk.
constexpr std::size_t kBuffers = 4 * kOutputBuffers;

std::string joined(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) {
    if (text.empty()) continue;
    if (!all.empty()) all += ",\n";
    all += text;
  }
  return all;
}

}  // namespace

void check_options(const SaveOptions& options) {
  if (options.client.size() > kLargestClientBlob) {
    throw ConfigError("save", "client", fmt::format("{} bytes: expected at most 16 MiB", options.client.size()));
  }
  if (options.memory < kLeastMemory) {
    throw ConfigError("save", "memory", fmt::format("{} bytes: expected at least 4 MiB", options.memory.count()));
  }
}

std::size_t buffer_bytes(Bytes memory) {
  const std::size_t each = std::min<std::size_t>(memory.count() / kBuffers, kLargestBuffer);
  return each / kFileAlignment * kFileAlignment;
}

Manifest manifest_of(const ZeroOptimizer& optimizer, const std::string& client) {
  const Setup& setup = optimizer.plan().setup;
  Manifest manifest;
  manifest.step = optimizer.step_state();
  manifest.catalog = optimizer.catalog();
  manifest.saved_by = {.world_size = setup.world_size,
                       .replicate = setup.replicate,
                       .stage = setup.stage,
                       .policy = setup.policy,
                       .optimizer = setup.optimizer,
                       .groups = optimizer.options().groups,
                       .clip_norm = optimizer.options().clip_norm};
  manifest.client = client;
  return manifest;
}

OpenCheckpoint begin_together(Communicator& world, Files& files, const std::string& folder, std::uint64_t step) {
  OpenCheckpoint checkpoint{.folder = folder, .name = {}};
  succeed_together(world, folder, [&] {
    if (world.rank() == 0) checkpoint = begin_checkpoint(files, folder, step);
  });
  checkpoint.name = text_of_first(world, checkpoint.name);
  return checkpoint;
}

std::vector<AnnouncedSlice> announced_slices(const ZeroOptimizer& optimizer) {
  std::vector<AnnouncedSlice> slices;
  optimizer.list_state([&](const StateRange& range, DType dtype, std::uint64_t elements) {
    slices.push_back({range.tensor, range.kind, range.first, elements, dtype});
  });
  return slices;
}

std::string write_rank(Files& files, const std::vector<TensorEntry>& table, const std::vector<AnnouncedSlice>& slices,
                       const RankFiles& where, const std::function<void(StateWriter&)>& give) {
  StateWriter writer(
      files, table, slices,
      {.folder = where.folder, .prefix = fmt::format("rank-{:05}", where.rank), .buffer_bytes = where.buffer});
  give(writer);
  std::string text;
  for (const CheckpointFile& file : writer.finish()) text += (text.empty() ? "" : ",\n") + file_text(file);
  return text;
}

void publish_together(Communicator& world, Files& files, const OpenCheckpoint& checkpoint, const Manifest& manifest,
                      const std::string& file_texts, std::uint64_t keep) {
  const std::vector<std::string> texts = texts_on_first(world, file_texts);
  succeed_together(world, checkpoint.folder, [&] {
    if (world.rank() != 0) return;
    publish_checkpoint(files, checkpoint, manifest_text(manifest, joined(texts)));
    keep_newest(files, checkpoint.folder, keep);
  });
}

std::string save_checkpoint(ZeroOptimizer& optimizer, Communicator& world, Files& files, const std::string& folder,
                            const SaveOptions& options) {
  check_options(options);
  const OpenCheckpoint checkpoint = begin_together(world, files, folder, optimizer.steps_applied());
  std::string mine;
  succeed_together(world, folder, [&] {
    mine =
        write_rank(files, tensor_table(optimizer.catalog()), announced_slices(optimizer),
                   {checkpoint.working_folder(), world.rank(), buffer_bytes(options.memory)}, [&](StateWriter& writer) {
                     optimizer.visit_state(
                         [&](const StateRange& range, const ConstElements& values) { writer.append(range, values); });
                   });
  });
  publish_together(world, files, checkpoint, manifest_of(optimizer, options.client), mine, options.keep);
  return checkpoint.name;
}

}  // namespace shardplan
