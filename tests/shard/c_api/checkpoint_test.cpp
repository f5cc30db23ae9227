// Checkpoints through the C interface: training goes on, at another stage and in another world, as if nothing had been.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "tests/shard/c_api/run.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

using test_support::TemporaryFolder;

std::string options_of(int ranks, int stage, const char* precision = "bf16-mixed") {
  return R"({"clip_norm": 0.5, "world_size": )" + std::to_string(ranks) + R"(, "zero_stage": )" +
         std::to_string(stage) + R"(, "precision": ")" + precision + "\"}";
}

shardplan_save_options save_options(std::string_view client, std::uint64_t keep) {
  shardplan_save_options options{};
  options.struct_size = sizeof options;
  options.client = client.data();
  options.client_bytes = client.size();
  options.keep = keep;
  return options;
}

shardplan_load_report load(const Rank& rank, const std::string& folder) {
  shardplan_load_report report{};
  report.struct_size = sizeof report;
  shardplan_error error{};
  EXPECT_OK(shardplan_optimizer_load(rank.optimizer, folder.c_str(), &report, &error), error);
  return report;
}

// Steps [first, last) of a plan; what it ends with.
template <typename Before, typename After>
std::vector<float> train(int ranks, int stage, std::uint64_t first, std::uint64_t last, Before before, After after) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, options_of(ranks, stage));
  std::vector<float> result;
  with_optimizers(*plan, ranks, [&](const Rank& rank) {
    before(rank);
    for (std::uint64_t step = first; step < last; ++step) run_step(rank, Client::enters_units, step, 1);
    after(rank);
    const std::vector<float> mine = parameters_of(rank);
    if (rank.rank == 0) result = mine;
  });
  return result;
}

TEST(CApiCheckpoint, TrainingGoesOnWithTheSameBits) {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  const std::string place("step\0two", 8);
  const auto nothing = [](const Rank&) {};
  const std::vector<float> expected = train(3, 1, 0, 4, nothing, nothing);
  train(3, 3, 0, 2, nothing, [&](const Rank& rank) {
    shardplan_error error{};
    const char* name = nullptr;
    const std::string client = rank.rank == 0 ? place : "another";
    const shardplan_save_options options = save_options(client, 1);
    ASSERT_OK(shardplan_optimizer_save(rank.optimizer, path.c_str(), nullptr, nullptr, &error), error);
    ASSERT_OK(shardplan_optimizer_save(rank.optimizer, path.c_str(), &options, &name, &error), error);
    EXPECT_STREQ(name, "save-000002-step-000000002");
  });
  EXPECT_FALSE(std::filesystem::exists(path + "/save-000001-step-000000002"));  // one was to be kept
  // Through a world of two and back.
  train(
      2, 0, 0, 0, [&](const Rank& rank) { load(rank, path); },
      [&](const Rank& rank) {
        shardplan_error error{};
        const std::string again = folder.path("again");
        EXPECT_OK(shardplan_optimizer_save(rank.optimizer, again.c_str(), nullptr, nullptr, &error), error);
      });
  for (const char* from : {"run", "again"}) {
    EXPECT_EQ(train(
                  3, 2, 2, 4,
                  [&](const Rank& rank) {
                    const shardplan_load_report report = load(rank, folder.path(from));
                    EXPECT_STREQ(report.name, from == std::string("run") ? "save-000002-step-000000002"
                                                                         : "save-000001-step-000000002");
                    const std::string client(static_cast<const char*>(report.client), report.client_bytes);
                    EXPECT_EQ(client, from == std::string("run") ? place : "");
                    EXPECT_EQ(report.note_count, 0U);
                  },
                  nothing),
              expected)
        << from;
  }
}

TEST(CApiCheckpoint, SavingInTheBackgroundSavesWhatWasThere) {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  const auto nothing = [](const Rank&) {};
  const std::vector<float> expected = train(2, 2, 0, 3, nothing, nothing);
  train(2, 3, 0, 3, nothing, [&](const Rank& rank) {
    shardplan_error error{};
    const char* name = "unchanged";
    ASSERT_OK(shardplan_optimizer_finish_save(rank.optimizer, 1, &name, &error), error);
    EXPECT_STREQ(name, "");
    const shardplan_save_options options = save_options("place", 1);
    ASSERT_OK(shardplan_optimizer_save_in_background(rank.optimizer, path.c_str(), &options, &error), error);
    run_step(rank, Client::enters_units, 3, 1);  // changes all of it
    do {
      ASSERT_OK(shardplan_optimizer_finish_save(rank.optimizer, 0, &name, &error), error);
    } while (name == nullptr);
    EXPECT_STREQ(name, "save-000001-step-000000003");
    // The one before is finished first; one that nobody finishes is not there.
    ASSERT_OK(shardplan_optimizer_save_in_background(rank.optimizer, path.c_str(), &options, &error), error);
    ASSERT_OK(shardplan_optimizer_finish_save(rank.optimizer, 1, &name, &error), error);
    EXPECT_STREQ(name, "save-000002-step-000000004");
    const std::string other = folder.path("other");
    ASSERT_OK(shardplan_optimizer_save_in_background(rank.optimizer, other.c_str(), nullptr, &error), error);
    run_step(rank, Client::enters_units, 4, 1);
    ASSERT_OK(shardplan_optimizer_save_in_background(rank.optimizer, other.c_str(), nullptr, &error), error);
  });
  EXPECT_EQ(std::filesystem::exists(path + "/save-000001-step-000000003"), false);  // one was to be kept
  EXPECT_TRUE(std::filesystem::exists(folder.path("other/save-000001-step-000000004/manifest.json")));
  EXPECT_FALSE(std::filesystem::exists(folder.path("other/save-000002-step-000000005")));
  EXPECT_EQ(train(
                2, 1, 0, 0,
                [&](const Rank& rank) {
                  const shardplan_load_report report = load(rank, path);
                  EXPECT_STREQ(report.name, "save-000002-step-000000004");
                  EXPECT_EQ(std::string(static_cast<const char*>(report.client), report.client_bytes), "place");
                },
                nothing),
            train(2, 0, 0, 4, nothing, nothing));
}

TEST(CApiCheckpoint, WhatIsWrongIsToldOnEveryRank) {
  const TemporaryFolder folder;
  const std::string path = folder.path("run");
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, options_of(2, 2));
  with_optimizers(*plan, 2, [&](const Rank& rank) {
    EXPECT_STREQ(load(rank, folder.path("nowhere")).name, "");
    shardplan_error error{};
    ASSERT_OK(shardplan_optimizer_save(rank.optimizer, path.c_str(), nullptr, nullptr, &error), error);
    ASSERT_OK(shardplan_optimizer_save(rank.optimizer, path.c_str(), nullptr, nullptr, &error), error);
    // A file where the folder should be.
    const std::string file = folder.path("run/latest");
    const char* name = nullptr;
    EXPECT_EQ(shardplan_optimizer_save(rank.optimizer, file.c_str(), nullptr, &name, &error),
              SHARDPLAN_CHECKPOINT_ERROR);
    EXPECT_EQ(name, nullptr);
    EXPECT_NE(std::string(error.message).find(file), std::string::npos) << error.message;
    shardplan_save_options options = save_options("", 0);
    options.memory_bytes = 1000;
    EXPECT_EQ(shardplan_optimizer_save(rank.optimizer, path.c_str(), &options, nullptr, &error),
              SHARDPLAN_CONFIG_ERROR);
    EXPECT_NE(std::string(error.message).find("expected at least 4 MiB"), std::string::npos) << error.message;
    options.struct_size = 3;
    EXPECT_EQ(shardplan_optimizer_save(rank.optimizer, path.c_str(), &options, nullptr, &error), SHARDPLAN_BUG);
    EXPECT_EQ(shardplan_optimizer_save(rank.optimizer, nullptr, nullptr, nullptr, &error), SHARDPLAN_BUG);
    EXPECT_EQ(shardplan_optimizer_save_in_background(rank.optimizer, file.c_str(), nullptr, &error),
              SHARDPLAN_CHECKPOINT_ERROR);
    EXPECT_EQ(shardplan_optimizer_load(nullptr, path.c_str(), nullptr, &error), SHARDPLAN_BUG);
  });
  // The newest is damaged: the one before it, and a note.
  folder.write("run/save-000002-step-000000000/manifest.json", "{}");
  with_optimizers(*plan, 2, [&](const Rank& rank) {
    const shardplan_load_report report = load(rank, path);
    EXPECT_STREQ(report.name, "save-000001-step-000000000");
    ASSERT_EQ(report.note_count, 1U);
    EXPECT_NE(std::strstr(report.notes[0], "save-000002-step-000000000/manifest.json"), nullptr) << report.notes[0];
  });
  // State in other dtypes.
  const PlanHandle other = plan_of(*catalog, options_of(2, 2, "bf16"));
  with_optimizers(*other, 2, [&](const Rank& rank) {
    shardplan_error error{};
    EXPECT_EQ(shardplan_optimizer_load(rank.optimizer, path.c_str(), nullptr, &error), SHARDPLAN_CONFIG_ERROR);
    EXPECT_NE(std::strstr(error.message, "embed.weight: its parameter is in fp32 in this checkpoint: expected bf16"),
              nullptr)
        << error.message;
  });
}

}  // namespace
}  // namespace shardplan::test
