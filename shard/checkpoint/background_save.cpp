#include "shard/checkpoint/background_save.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"
#include "planner/snapshot.h"
#include "shard/checkpoint/save_parts.h"
#include "shard/checkpoint/together.h"

namespace shardplan {

BackgroundSave::BackgroundSave(ZeroOptimizer& optimizer, Communicator& world, Files& files, Device& device)
    : optimizer_(optimizer),
      world_(world),
      files_(files),
      bytes_(snapshot_bytes(optimizer.plan())),
      snapshot_(device.allocate({.tier = MemoryTier::host, .bytes = bytes_})) {
  snapshot_->handed_out(0, bytes_, "snapshot");
}

BackgroundSave::~BackgroundSave() {
  writer_.abandon();
  snapshot_->given_back(0, bytes_);
}

void BackgroundSave::start(const std::string& folder, const SaveOptions& options) {
  check_options(options);
  finish();
  folder_ = folder;
  OpenCheckpoint checkpoint = begin_together(world_, files_, folder_, optimizer_.steps_applied());
  manifest_ = manifest_of(optimizer_, options.client);
  keep_ = options.keep;
  std::vector<AnnouncedSlice> slices = announced_slices(optimizer_);
  std::byte* const data = snapshot_->data();
  std::uint64_t used = 0;
  optimizer_.visit_state([&](const StateRange&, const ConstElements& values) {
    const std::uint64_t bytes = bytes_for(values.dtype, values.elements).count();
    SHARDPLAN_CHECK(used + bytes <= bytes_.count(), "the state is larger than its planned snapshot");
    std::memcpy(data + used, values.data, bytes);
    used += bytes;
  });
  checkpoint_ = std::move(checkpoint);
  const RankFiles where{checkpoint_.working_folder(), world_.rank(), buffer_bytes(options.memory)};
  writer_.start([this, where, data, slices = std::move(slices)] {
    const std::vector<TensorEntry> table = tensor_table(manifest_.catalog);
    file_texts_ = write_rank(files_, table, slices, where, [&](StateWriter& writer) {
      std::uint64_t at = 0;
      for (const AnnouncedSlice& slice : slices) {
        writer.append({table[slice.tensor].name, slice.tensor, slice.kind, slice.first},
                      ConstElements(slice.dtype, data + at, slice.elements));
        at += bytes_for(slice.dtype, slice.elements).count();
      }
    });
  });
}

bool BackgroundSave::poll() {
  if (!under_way()) return true;
  const std::byte mine{writer_.done() ? std::uint8_t{1} : std::uint8_t{0}};
  std::vector<std::byte> done(static_cast<std::size_t>(world_.size()));
  world_.all_gather_bytes({&mine, 1}, done);
  if (std::find(done.begin(), done.end(), std::byte{0}) != done.end()) return false;
  publish();
  return true;
}

void BackgroundSave::finish() {
  if (under_way()) publish();
}

void BackgroundSave::publish() {
  const OpenCheckpoint checkpoint = std::exchange(checkpoint_, {});
  succeed_together(world_, folder_, [&] { writer_.wait(); });
  publish_together(world_, files_, checkpoint, manifest_, file_texts_, keep_);
  published_ = checkpoint.name;
}

}  // namespace shardplan
