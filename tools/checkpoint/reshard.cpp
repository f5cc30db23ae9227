#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "planner/layout.h"
#include "shard/checkpoint/folder.h"
#include "shard/checkpoint/state_writer.h"
#include "tools/checkpoint/commands.h"

namespace shardplan::checkpoint_tool {
namespace {

// What rank `rank` of `layout.shards` visits, in the order of ZeroOptimizer::list_state().
std::vector<AnnouncedSlice> slices_of(const CheckpointReader& reader, const Layout& layout, std::uint64_t rank) {
  std::vector<AnnouncedSlice> slices;
  std::uint64_t first_tensor = 0;  // of the unit
  const Catalog& catalog = reader.manifest().catalog;
  for (std::size_t run = 0; run < catalog.runs.size(); ++run) {
    const std::vector<Tensor>& tensors = catalog.runs[run].tensors;
    for (std::uint64_t i = 0; i < catalog.runs[run].count; ++i, first_tensor += tensors.size()) {
      std::vector<Range> mine(tensors.size());
      for (const BufferLayout& buffer : layout.runs[run].unit.buffers) {
        const Range shard = shard_range(buffer, rank);
        for (const TensorSlot& slot : buffer.tensors) {
          const Range held = intersect(slot.range, shard);
          if (!held.empty()) mine[slot.tensor] = {held.begin - slot.range.begin, held.end - slot.range.begin};
        }
      }
      for (std::size_t t = 0; t < tensors.size(); ++t) {
        for (std::uint64_t k = 0; k < kStateKinds && !mine[t].empty(); ++k) {
          const auto kind = static_cast<StateKind>(k);
          const auto dtype = reader.dtype_of(first_tensor + t, kind);
          if (dtype) slices.push_back({first_tensor + t, kind, mine[t].begin, mine[t].size(), *dtype});
        }
      }
    }
  }
  return slices;
}

std::vector<CheckpointFile> write_rank(Files& files, CheckpointReader& reader, const Layout& layout, std::uint64_t rank,
                                       const std::string& folder) {
  const std::vector<AnnouncedSlice> slices = slices_of(reader, layout, rank);
  StateWriter writer(files, reader.tensors(), slices, {.folder = folder, .prefix = fmt::format("rank-{:05}", rank)});
  std::vector<std::byte> values;
  for (const AnnouncedSlice& slice : slices) {
    values.resize(std::max<std::size_t>(values.size(), bytes_for(slice.dtype, kStateChunk).count()));
    for (std::uint64_t done = 0; done < slice.elements; done += kStateChunk) {
      const Elements part(slice.dtype, values.data(), std::min(kStateChunk, slice.elements - done));
      reader.read(slice.tensor, slice.kind, slice.first + done, part);
      writer.append({reader.tensors()[slice.tensor].name, slice.tensor, slice.kind, slice.first + done}, part);
    }
  }
  return writer.finish();
}

}  // namespace

std::string reshard(Files& files, const std::string& checkpoint, const std::string& out, std::uint64_t ranks) {
  if (ranks == 0 || ranks > 100'000) throw ConfigError("--ranks", "", "expected 1 to 100000");
  CheckpointReader reader(files, checkpoint);
  Manifest manifest = reader.manifest();
  const Layout layout = make_layout(manifest.catalog, ranks, 1);
  const OpenCheckpoint open = begin_checkpoint(files, out, manifest.step.steps_applied);
  manifest.saved_by.world_size = ranks;
  manifest.saved_by.replicate = 1;
  manifest.block_bytes = kCheckpointBlock;
  manifest.files.clear();
  for (std::uint64_t rank = 0; rank < ranks; ++rank) {
    std::vector<CheckpointFile> written = write_rank(files, reader, layout, rank, open.working_folder());
    std::move(written.begin(), written.end(), std::back_inserter(manifest.files));
  }
  publish_checkpoint(files, open, manifest_text(manifest));
  return open.name;
}

}  // namespace shardplan::checkpoint_tool
