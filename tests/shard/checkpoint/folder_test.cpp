// Names, order, and which checkpoints stay.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/folder.h"
#include "tests/shard/training_run.h"
#include "tests/shard/worlds.h"
#include "tests/support/crashing_files.h"

namespace shardplan::test {
namespace {

using Names = std::vector<std::string>;

TEST(Folder, NamesHaveOneSpelling) {
  EXPECT_EQ(text_of({.save = 7, .step = 120}), "save-000007-step-000000120");
  EXPECT_EQ(parse_checkpoint_name("save-000007-step-000000120"), (CheckpointName{7, 120}));
  EXPECT_EQ(parse_checkpoint_name("save-1000000-step-1000000000"), (CheckpointName{1000000, 1000000000}));
  for (const char* wrong :
       {"", "save-", "save-7-step-120", "save-000007-step-000000120/", "save-000007-step-000000120 ",
        "../save-000007-step-000000120", "save-000007", "save--00007-step-000000120", "save-0000007-step-000000120",
        "save-99999999999999999999-step-000000120"}) {
    EXPECT_EQ(parse_checkpoint_name(wrong), std::nullopt) << wrong;
  }
}

// A run that saves after each step.
void save_several(Files& files, std::uint64_t saves, std::uint64_t keep) {
  with_world(setup_of("fp32", 1, 1, 0), odd_catalog(), state_options(), script_of(saves), [&](const Rank& rank) {
    for (std::uint64_t step = 0; step < saves; ++step) {
      rank.client.run_step(rank.optimizer, step);
      save_checkpoint(rank.optimizer, rank.world, files, "runs", {.keep = keep});
    }
  });
}

TEST(Folder, TheNewestStay) {
  for (const std::uint64_t keep : {0U, 1U, 3U}) {
    CrashingFiles files;
    save_several(files, 5, keep);
    const Names all{"save-000005-step-000000005", "save-000004-step-000000004", "save-000003-step-000000003",
                    "save-000002-step-000000002", "save-000001-step-000000001"};
    const auto kept = static_cast<std::ptrdiff_t>(keep == 0 ? all.size() : keep);
    EXPECT_EQ(checkpoints_in(files, "runs"), Names(all.begin(), all.begin() + kept));
    EXPECT_EQ(read_whole(files, "runs/latest", 100), all.front() + "\n");
  }
}

TEST(Folder, WhatIsNotWholeDoesNotCount) {
  CrashingFiles files;
  save_several(files, 4, 0);
  files.content("runs/save-000004-step-000000004/manifest.json")[40] ^= 1;
  files.remove_file("runs/save-000003-step-000000003/rank-00000-fp32.safetensors");
  files.content("runs/latest") = "save-000001-step-000000001\n";
  keep_newest(files, "runs", 1);
  // The newest whole one is the second; what `latest` names stays; what is newer than the last kept one stays too.
  EXPECT_EQ(checkpoints_in(files, "runs"), (Names{"save-000004-step-000000004", "save-000003-step-000000003",
                                                  "save-000002-step-000000002", "save-000001-step-000000001"}));
  files.content("runs/latest") = "save-000004-step-000000004\n";
  keep_newest(files, "runs", 1);
  EXPECT_EQ(checkpoints_in(files, "runs"),
            (Names{"save-000004-step-000000004", "save-000003-step-000000003", "save-000002-step-000000002"}));
}

TEST(Folder, WhatLatestNamesIsTriedFirst) {
  CrashingFiles files;
  save_several(files, 3, 0);
  const Names by_age{"save-000003-step-000000003", "save-000002-step-000000002", "save-000001-step-000000001"};
  files.content("runs/latest") = "save-000002-step-000000002\n";
  EXPECT_EQ(checkpoints_to_try(files, "runs"),
            (Names{"save-000002-step-000000002", "save-000003-step-000000003", "save-000001-step-000000001"}));
  for (const std::string& nothing : {std::string("save-000009-step-000000009\n"), std::string("../elsewhere\n"),
                                     std::string(), std::string(1000, 'x')}) {
    files.content("runs/latest") = nothing;
    EXPECT_EQ(checkpoints_to_try(files, "runs"), by_age) << nothing;
  }
  files.remove_file("runs/latest");
  EXPECT_EQ(checkpoints_to_try(files, "runs"), by_age);
  EXPECT_EQ(checkpoints_to_try(files, "elsewhere"), Names{});
}

TEST(Folder, AResumePassesOverWhatIsDamaged) {
  CrashingFiles files;
  save_several(files, 3, 0);
  files.content("runs/save-000003-step-000000003/manifest.json").resize(100);
  files.content("runs/save-000002-step-000000002/rank-00000-fp32.safetensors").back() ^= 16;
  const auto resume = [&](std::string* note) {
    LoadReport report;
    with_world(setup_of("fp32", 2, 1, 3), odd_catalog(), other_initial_values(), {}, [&](const Rank& rank) {
      const LoadReport mine = load_checkpoint(rank.optimizer, rank.world, files, "runs");
      if (rank.rank == 0) report = mine;
    });
    *note = report.notes.back();
    return report;
  };
  std::string note;
  const LoadReport report = resume(&note);
  EXPECT_EQ(report.name, "save-000001-step-000000001");
  ASSERT_EQ(report.notes.size(), 2U);
  EXPECT_NE(report.notes[0].find("save-000003-step-000000003/manifest.json"), std::string::npos) << report.notes[0];
  EXPECT_NE(note.find("save-000002-step-000000002/rank-00000-fp32.safetensors"), std::string::npos) << note;
  EXPECT_NE(note.find("head.mix"), std::string::npos) << note;  // whose bytes are the last

  // None is whole: the initial values, though a load had begun.
  files.content("runs/save-000001-step-000000001/rank-00000-fp32.safetensors").back() ^= 16;
  std::vector<std::vector<float>> parameters;
  with_world(setup_of("fp32", 2, 1, 3), odd_catalog(), state_options(), {}, [&](const Rank& rank) {
    const auto before = parameters_of(rank.optimizer);
    EXPECT_EQ(load_checkpoint(rank.optimizer, rank.world, files, "runs").name, "");
    EXPECT_EQ(parameters_of(rank.optimizer), before);
    EXPECT_EQ(rank.optimizer.step_state(), StepState({.steps_applied = 0, .loss_scale = 1024}));
  });
}

}  // namespace
}  // namespace shardplan::test
