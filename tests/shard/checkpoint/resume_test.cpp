// What one world saves, every other one loads: the same bits, with and without steps in between.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "planner/formats/safetensors.h"
#include "runtime/files/posix_files.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/checkpoint_reader.h"
#include "tests/shard/training_run.h"
#include "tests/shard/worlds.h"
#include "tests/support/config_error.h"
#include "tests/support/crashing_files.h"
#include "tests/support/run_processes.h"
#include "tests/support/sanitizers.h"
#include "tests/support/saved_state.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

std::string shown(const Setup& setup) {
  return fmt::format("{}, {} ranks, {} replicas, stage {}", setup.policy.name, setup.world_size, setup.replicate,
                     setup.stage);
}

// Trains steps [first, last) and saves; what is saved, in memory as well.
void train_and_save(const Setup& setup, const Catalog& catalog, const Script& script, std::uint64_t last, Files& files,
                    SavedState& saved) {
  with_world(setup, catalog, state_options(), script, [&](const Rank& rank) {
    for (std::uint64_t step = 0; step < last; ++step) rank.client.run_step(rank.optimizer, step);
    saved.save(rank.optimizer);
    EXPECT_EQ(save_checkpoint(rank.optimizer, rank.world, files, "saved", {.client = "place"}),
              fmt::format("save-000001-step-{:09}", rank.optimizer.steps_applied()));
  });
}

TEST(Resume, AnyWorldAtAnyStageLoadsWhatAnyOtherSaved) {
  const Catalog catalog = state_catalog();
  const Script script = script_of(2);
  for (const char* precision : {"fp32", "bf16-mixed", "fp16-mixed", "bf16"}) {
    SavedState saved(catalog);
    CrashingFiles files;
    train_and_save(setup_of(precision, 3, 1, 2), catalog, script, 2, files, saved);
    auto worlds = small_worlds(precision);
    for (const std::uint64_t world : {4U, 7U}) worlds.push_back(setup_of(precision, world, 1, 3));
    for (const auto& setup : worlds) {
      SCOPED_TRACE(shown(setup));
      SavedState loaded(catalog);
      with_world(setup, catalog, other_initial_values(), script, [&](const Rank& rank) {
        const LoadReport report = load_checkpoint(rank.optimizer, rank.world, files, "saved");
        EXPECT_EQ(report.name, "save-000001-step-000000002");
        EXPECT_EQ(report.client, "place");
        EXPECT_TRUE(report.notes.empty());
        loaded.save(rank.optimizer);
      });
      EXPECT_EQ(loaded.digest(), saved.digest());
    }
  }
}

// N -> M -> N and stage a -> b, no step at M: as if nothing had been stopped.
TEST(Resume, ThroughAnotherWorldAndBackIsAsIfNeverStopped) {
  const Catalog catalog = odd_catalog();
  Script script = script_of(4);
  script.poisons = {{{.step = 1, .micro_batch = 0, .rank = 0, .unit = 0, .tensor = 0}, INFINITY}};
  for (const std::uint64_t n : {1U, 2U, 3U, 4U, 7U}) {
    const auto first = setup_of("bf16-mixed", n, 1, 1);
    const Trained expected = run_reference(catalog, first, state_options(), script);
    SavedState saved(catalog);
    CrashingFiles files;
    train_and_save(first, catalog, script, 3, files, saved);
    for (const std::uint64_t m : {1U, 2U, 3U, 4U, 7U}) {
      const int stage = static_cast<int>((n + m) % 4);
      SCOPED_TRACE(fmt::format("{} ranks -> {} at stage {} -> {}", n, m, stage, n));
      const std::string again = fmt::format("again-{}", m);
      with_world(setup_of("bf16-mixed", m, 1, stage), catalog, other_initial_values(), script, [&](const Rank& rank) {
        load_checkpoint(rank.optimizer, rank.world, files, "saved");
        save_checkpoint(rank.optimizer, rank.world, files, again, {});
      });
      with_world(setup_of("bf16-mixed", n, 1, 3 - stage), catalog, other_initial_values(), script,
                 [&](const Rank& rank) {
                   load_checkpoint(rank.optimizer, rank.world, files, again);
                   const StepReport report = rank.client.run_step(rank.optimizer, 3);
                   EXPECT_EQ(difference(report, expected.reports[3]), "");
                   EXPECT_EQ(parameters_of(rank.optimizer), expected.parameters);
                 });
    }
  }
}

TEST(Resume, FilesOnARealDiskAreSafetensors) {
  const Catalog catalog = state_catalog();
  for (const FileWrites writes : {FileWrites::direct, FileWrites::buffered}) {
    const test_support::TemporaryFolder folder;
    PosixFiles files(writes);
    SavedState saved(catalog);
    with_world(setup_of("bf16-mixed", 2, 1, 3), catalog, state_options(), script_of(1), [&](const Rank& rank) {
      rank.client.run_step(rank.optimizer, 0);
      saved.save(rank.optimizer);
      save_checkpoint(rank.optimizer, rank.world, files, folder.path(), {.memory = 4_MiB});
    });
    const CheckpointReader reader(files, folder.path("save-000001-step-000000001"));
    EXPECT_EQ(reader.manifest().files.size(), 2U * 2U);  // fp32, and bf16 (frozen), on each rank
    std::size_t slices = 0;
    for (std::size_t i = 0; i < reader.manifest().files.size(); ++i) {
      const CheckpointFile& file = reader.manifest().files[i];
      const SafetensorsHeader header = read_safetensors_header(reader.folder() + "/" + file.name);
      ASSERT_EQ(header.tensors.size(), file.slices.size());
      EXPECT_EQ(header.data_begin, file.data_begin);
      for (std::size_t s = 0; s < file.slices.size(); ++s, ++slices) {
        const Slice& slice = file.slices[s];
        EXPECT_EQ(header.tensors[s].name,
                  slice_name(slice.kind, reader.tensors()[slice.tensor].name, slice.first, slice.elements));
        EXPECT_EQ(header.tensors[s].begin + header.data_begin, slice.begin);
      }
      const auto bad = [](const std::string& slice, const std::string& problem) {
        ADD_FAILURE() << slice << ": " << problem;
      };
      reader.verify_header(i, bad);
      reader.verify_blocks(i, 0, file.blocks.size(), bad);
    }
    EXPECT_GT(slices, 25U + 3U * 18U);  // each state of each tensor, and cuts
    SavedState loaded(catalog);
    with_world(setup_of("bf16-mixed", 1, 1, 0), catalog, other_initial_values(), {}, [&](const Rank& rank) {
      load_checkpoint(rank.optimizer, rank.world, files, folder.path());
      loaded.save(rank.optimizer);
    });
    EXPECT_EQ(loaded.digest(), saved.digest());
  }
}

TEST(Resume, NoCheckpointLeavesTheInitialValues) {
  const Catalog catalog = odd_catalog();
  SavedState initial(catalog);
  SavedState after(catalog);
  CrashingFiles files;
  with_world(setup_of("fp32", 2, 1, 2), catalog, state_options(), {}, [&](const Rank& rank) {
    initial.save(rank.optimizer);
    EXPECT_EQ(load_checkpoint(rank.optimizer, rank.world, files, "nowhere").name, "");
    after.save(rank.optimizer);
  });
  EXPECT_EQ(after.digest(), initial.digest());
}

void expect_refused(const Setup& setup, const Catalog& catalog, Files& files, const std::string& words) {
  with_world(setup, catalog, state_options(), {}, [&](const Rank& rank) {
    SavedState before(catalog);
    before.save(rank.optimizer);
    test_support::expect_config_error([&] { load_checkpoint(rank.optimizer, rank.world, files, "saved"); },
                                      "saved/save-000001-step-000000000", "", words);
    SavedState after(catalog);
    after.save(rank.optimizer);
    EXPECT_EQ(after.digest(), before.digest());
  });
}

TEST(Resume, AnotherModelIsRefusedByName) {
  const Catalog catalog = odd_catalog();
  CrashingFiles files;
  SavedState saved(catalog);
  train_and_save(setup_of("bf16-mixed", 1, 1, 0), catalog, {}, 0, files, saved);

  Catalog more = catalog;
  more.runs.front().tensors.push_back({.name = "embed.more", .shape = {2}});
  expect_refused(setup_of("bf16-mixed", 1, 1, 0), more, files, "embed.more: is not in this checkpoint");
  Catalog less = catalog;
  less.runs.at(1).tensors.clear();
  expect_refused(setup_of("bf16-mixed", 2, 1, 1), less, files, "one.scale: is in this checkpoint alone");
  Catalog other = catalog;
  other.runs.at(1).tensors.front().shape = {2, 1};
  expect_refused(setup_of("bf16-mixed", 1, 1, 0), other, files,
                 "one.scale: has the shape [] in this checkpoint: expected [2, 1]");
  expect_refused(setup_of("bf16", 1, 1, 0), catalog, files,
                 "embed.weight: its parameter is in fp32 in this checkpoint: expected bf16");
  auto without = setup_of("bf16-mixed", 1, 1, 0);
  without.ema = false;
  with_world(without, catalog, state_options(), {}, [&](const Rank& rank) {
    EXPECT_NE(load_checkpoint(rank.optimizer, rank.world, files, "saved").name, "");  // less is asked for: fine
    save_checkpoint(rank.optimizer, rank.world, files, "without", {});
  });
  with_world(setup_of("bf16-mixed", 1, 1, 0), catalog, state_options(), {}, [&](const Rank& rank) {
    test_support::expect_config_error([&] { load_checkpoint(rank.optimizer, rank.world, files, "without"); },
                                      "without/save-000001-step-000000000", "",
                                      "embed.weight: has no ema in this checkpoint");
  });
}

// ThreadSanitizer holds a shadow of all that is touched.
#if !defined(SHARDPLAN_THREAD_SANITIZER)
std::uint64_t of_process(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::uint64_t kib = 0;
    if (word == key + ":" && status >> kib) return kib << 10;
  }
  ADD_FAILURE() << "/proc/self/status has no " << key;
  return 0;
}

// What act(rank) takes beyond what the process holds before it, on one rank with 192 MiB of state: in a process of its own, for
// which the kernel begins to count anew.
void expect_growth_below(Bytes most, const shardplan::Setup& setup, const Catalog& catalog,
                         const std::function<void(const Rank&)>& act) {
  const auto outcomes = run_processes(1, [&](int) {
    with_world(setup, catalog, state_options(), {}, [&](const Rank& rank) {
      const std::uint64_t before = of_process("VmRSS");
      act(rank);
      EXPECT_LT(of_process("VmHWM") - before, most.count());
    });
  });
  EXPECT_EQ(outcomes[0].message, "");
}

// Nothing of the state may be held twice.
TEST(Resume, ASaveAndALoadHoldLittleBeyondTheArenas) {
  CatalogBuilder builder("large", "tensors");
  builder.add_run("layers", 0, 4, {{.name = "weight", .shape = {2048, 2048}}});
  const Catalog catalog = builder.finish();
  auto setup = setup_of("fp32", 1, 1, 0);
  setup.ema = false;
  const test_support::TemporaryFolder folder;
  PosixFiles files;
  constexpr Bytes kMemory = 16_MiB;
  const auto save = [&](const Rank& rank) {
    save_checkpoint(rank.optimizer, rank.world, files, folder.path(), {.memory = kMemory});
  };
  const auto load = [&](const Rank& rank) {
    EXPECT_NE(load_checkpoint(rank.optimizer, rank.world, files, folder.path()).name, "");
  };
  expect_growth_below(kMemory, setup, catalog, save);
  expect_growth_below(kMemory + Bytes{kStateKinds * kCheckpointBlock}, setup, catalog, load);
  // More files than are read ahead at a time.
  auto many = setup_of("fp32", 6, 1, 1);
  many.ema = false;
  with_world(many, catalog, state_options(), {}, save);
  expect_growth_below(64_MiB + 1_MiB, setup, catalog, load);
}
#endif

}  // namespace
}  // namespace shardplan::test
