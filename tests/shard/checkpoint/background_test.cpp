// Saving while training goes on: the same files, planned bytes, errors at the next call.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "planner/snapshot.h"
#include "runtime/cpu_device.h"
#include "runtime/recording_device.h"
#include "shard/checkpoint/background_save.h"
#include "tests/shard/training_run.h"
#include "tests/shard/worlds.h"
#include "tests/support/crashing_files.h"
#include "tests/support/saved_state.h"

namespace shardplan::test {
namespace {

TEST(BackgroundSave, WritesWhatASaveWrites) {
  const Catalog catalog = state_catalog();
  for (const auto& setup :
       {setup_of("bf16-mixed", 1, 1, 0), setup_of("bf16-mixed", 3, 1, 2), setup_of("bf16-mixed", 4, 2, 3)}) {
    SCOPED_TRACE(fmt::format("{} ranks, {} replicas, stage {}", setup.world_size, setup.replicate, setup.stage));
    CrashingFiles files;
    CpuDevice cpu;
    with_world(setup, catalog, state_options(), script_of(3), [&](const Rank& rank) {
      RecordingDevice recording(cpu);
      BackgroundSave saving(rank.optimizer, rank.world, files, recording);
      const Bytes planned = snapshot_bytes(rank.optimizer.plan());
      EXPECT_EQ(recording.report(MemoryTier::host).high_water, planned);
      EXPECT_GT(planned, 0_B);
      rank.client.run_step(rank.optimizer, 0);
      save_checkpoint(rank.optimizer, rank.world, files, "foreground", {.client = "place"});
      saving.start("background", {.client = "place"});
      rank.client.run_step(rank.optimizer, 1);  // changes every byte of the state
      saving.finish();
      EXPECT_EQ(saving.published(), "save-000001-step-000000001");
      save_checkpoint(rank.optimizer, rank.world, files, "foreground", {});
      saving.start("background", {});
      rank.client.run_step(rank.optimizer, 2);
      while (!saving.poll()) std::this_thread::sleep_for(std::chrono::milliseconds{1});
      EXPECT_EQ(saving.published(), "save-000002-step-000000002");
      EXPECT_TRUE(saving.poll());
    });
    std::size_t compared = 0;
    for (const std::string& path : files.paths()) {
      if (!path.starts_with("foreground/")) continue;
      ++compared;
      EXPECT_EQ(files.content("background" + path.substr(path.find('/'))), files.content(path)) << path;
    }
    EXPECT_GE(compared, 2 * 3U + 1);
  }
}

TEST(BackgroundSave, AFailureIsToldByTheNextCallAndTheNextSaveSucceeds) {
  const Catalog catalog = odd_catalog();
  CrashingFiles files;
  CpuDevice cpu;
  with_world(setup_of("fp32", 3, 1, 2), catalog, state_options(), script_of(2), [&](const Rank& rank) {
    BackgroundSave saving(rank.optimizer, rank.world, files, cpu);
    if (rank.rank == 0) {
      files.fail_when([](const std::string& what, const std::string& path) {
        return what == "write" && path.find("rank-00001") != std::string::npos;
      });
    }
    rank.world.barrier();
    saving.start("saved", {});
    rank.client.run_step(rank.optimizer, 0);
    EXPECT_THROW(while (!saving.poll()) std::this_thread::sleep_for(std::chrono::milliseconds{1}), CheckpointError);
    EXPECT_FALSE(saving.under_way());
    rank.world.barrier();
    if (rank.rank == 0) {
      EXPECT_TRUE(checkpoints_in(files, "saved").empty());
      files.fail_when({});
    }
    rank.world.barrier();
    saving.start("saved", {});
    saving.start("saved", {});  // finishes the one before
    EXPECT_EQ(saving.published(), "save-000001-step-000000001");
  });
  // The one that nobody finished is not there.
  EXPECT_EQ(checkpoints_in(files, "saved"), std::vector<std::string>{"save-000001-step-000000001"});
}

}  // namespace
}  // namespace shardplan::test
