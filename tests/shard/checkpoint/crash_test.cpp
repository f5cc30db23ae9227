// The power goes in the middle of a save, at every operation: what is found is the old checkpoint or the new one, whole.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/folder.h"
#include "tests/shard/training_run.h"
#include "tests/shard/worlds.h"
#include "tests/support/crashing_files.h"
#include "tests/support/saved_state.h"

namespace shardplan::test {
namespace {

constexpr const char* kFolder = "runs/first";

struct Digests {
  std::uint64_t initial = 0;
  std::vector<std::uint64_t> saved;
};

// Saves after each of `steps` steps, keeping one checkpoint. False where the power was cut.
bool train(Files& files, const Setup& setup, std::uint64_t steps, Digests* digests = nullptr) {
  const Catalog catalog = odd_catalog();
  std::deque<SavedState> states;
  for (std::uint64_t i = 0; i <= steps; ++i) states.emplace_back(catalog);
  try {
    with_world(setup, catalog, state_options(), script_of(steps), [&](const Rank& rank) {
      states[0].save(rank.optimizer);
      for (std::uint64_t step = 0; step < steps; ++step) {
        rank.client.run_step(rank.optimizer, step);
        states[step + 1].save(rank.optimizer);
        save_checkpoint(rank.optimizer, rank.world, files, kFolder, {.keep = 1});
      }
    });
  } catch (const PowerCut&) {
    return false;
  } catch (const CommunicationError&) {
    return false;  // of a rank whose peer lost its power
  }
  if (digests != nullptr) {
    digests->initial = states[0].digest();
    for (std::uint64_t i = 1; i <= steps; ++i) digests->saved.push_back(states[i].digest());
  }
  return true;
}

// Which state a resume finds: 0 where there is no checkpoint, 1 for that of the first save, ...; nothing for any other.
std::optional<std::size_t> found_by_a_resume(Files& files, const Digests& digests) {
  const Catalog catalog = odd_catalog();
  SavedState loaded(catalog);
  std::string name;
  with_world(setup_of("bf16-mixed", 1, 1, 0), catalog, state_options(), {}, [&](const Rank& rank) {
    name = load_checkpoint(rank.optimizer, rank.world, files, kFolder).name;
    loaded.save(rank.optimizer);
  });
  if (name.empty() && loaded.digest() == digests.initial) return 0;
  for (std::size_t i = 0; i < digests.saved.size(); ++i) {
    if (!name.empty() && loaded.digest() == digests.saved[i]) return i + 1;
  }
  return std::nullopt;
}

// How many outcomes of a cut after `operations` are neither the checkpoint before nor the one after.
struct Outcomes {
  std::size_t wrong = 0;
  bool old_seen = false;
  bool new_seen = false;
};

Outcomes outcomes_of_cut(const CrashingFiles& files, const Digests& digests, std::size_t before, std::size_t after,
                         std::uint64_t seeds) {
  Outcomes outcomes;
  for (std::uint64_t i = 0; i < seeds + 2; ++i) {
    const auto found = i == 0   ? CrashingFiles::Found::all
                       : i == 1 ? CrashingFiles::Found::none
                                : CrashingFiles::Found::some;
    const auto disk = files.after_power_cut(found, i);
    const auto state = found_by_a_resume(*disk, digests);
    if (state == before) {
      outcomes.old_seen = true;
    } else if (state == after) {
      outcomes.new_seen = true;
    } else {
      ++outcomes.wrong;
    }
  }
  return outcomes;
}

// The operations after which a save has returned.
std::vector<std::uint64_t> operations_of_saves(const Setup& setup, std::uint64_t steps) {
  std::vector<std::uint64_t> ends{0};
  for (std::uint64_t i = 1; i <= steps; ++i) {
    CrashingFiles files;
    train(files, setup, i);
    ends.push_back(files.operations());
  }
  return ends;
}

// After so many operations: what is found is that of the last of them, or the next.
std::size_t saves_returned(const std::vector<std::uint64_t>& ends, std::uint64_t operations) {
  return static_cast<std::size_t>(std::upper_bound(ends.begin(), ends.end(), operations) - ends.begin()) - 1;
}

TEST(Crash, OldOrNewAfterEveryOperation) {
  constexpr std::uint64_t kSteps = 2;
  for (const std::uint64_t ranks : {1U, 2U}) {
    const std::uint64_t seeds = ranks == 1 ? 6 : 2;  // ranks add files, not kinds of operations
    const auto setup = setup_of("bf16-mixed", ranks, 1, 2);
    const std::vector<std::uint64_t> ends = operations_of_saves(setup, kSteps);
    Digests digests;
    CrashingFiles undisturbed;
    ASSERT_TRUE(train(undisturbed, setup, kSteps, &digests));
    Outcomes seen;
    for (std::uint64_t cut = 0; cut <= ends.back(); ++cut) {
      CrashingFiles files;
      files.cut_after(cut);
      EXPECT_EQ(train(files, setup, kSteps), cut == ends.back());
      const std::size_t before = saves_returned(ends, cut);
      const Outcomes outcomes = outcomes_of_cut(files, digests, before, before + 1, seeds);
      EXPECT_EQ(outcomes.wrong, 0U) << ranks << " ranks, cut after operation " << cut << " of " << ends.back();
      seen.old_seen = seen.old_seen || outcomes.old_seen;
      seen.new_seen = seen.new_seen || outcomes.new_seen;
    }
    EXPECT_TRUE(seen.old_seen && seen.new_seen);
  }
}

// On a disk whose syncs do nothing the same cuts must do harm, or the test above would find nothing.
TEST(Crash, ADiskThatDoesNotSyncIsFound) {
  const auto setup = setup_of("bf16-mixed", 1, 1, 2);
  const std::vector<std::uint64_t> ends = operations_of_saves(setup, 2);
  Digests digests;
  CrashingFiles undisturbed;
  ASSERT_TRUE(train(undisturbed, setup, 2, &digests));
  std::size_t wrong = 0;
  for (std::uint64_t cut = 0; cut <= undisturbed.operations(); ++cut) {
    CrashingFiles files;
    files.ignore_syncs();
    files.cut_after(cut);
    train(files, setup, 2);
    const std::size_t before = saves_returned(ends, cut);
    wrong += outcomes_of_cut(files, digests, before, before + 1, 2).wrong;
  }
  EXPECT_GT(wrong, 0U);
}

// A full disk, or a broken one: every rank hears of it, the folder is as it was, and the next save succeeds.
TEST(Crash, ASaveThatFailsLeavesTheLastOne) {
  const Catalog catalog = odd_catalog();
  const auto setup = setup_of("fp32", 3, 1, 1);
  CrashingFiles undisturbed;
  const auto steps = script_of(2);
  const auto run = [&](CrashingFiles& files, const std::string& operation, const std::string& part) {
    with_world(setup, catalog, state_options(), steps, [&](const Rank& rank) {
      rank.client.run_step(rank.optimizer, 0);
      save_checkpoint(rank.optimizer, rank.world, files, kFolder, {.keep = 1});
      rank.client.run_step(rank.optimizer, 1);
      rank.world.barrier();
      if (rank.rank == 0) {
        files.fail_when([=](const std::string& what, const std::string& path) {
          return what == operation && path.find(part) != std::string::npos;
        });
      }
      rank.world.barrier();
      EXPECT_THROW(save_checkpoint(rank.optimizer, rank.world, files, kFolder, {.keep = 1}), CheckpointError);
      rank.world.barrier();
      if (rank.rank == 0) {
        EXPECT_EQ(checkpoints_in(files, kFolder), std::vector<std::string>{"save-000001-step-000000001"});
        files.fail_when({});
      }
      rank.world.barrier();
      save_checkpoint(rank.optimizer, rank.world, files, kFolder, {.keep = 1});
      if (rank.rank == 0) {
        EXPECT_EQ(checkpoints_in(files, kFolder), std::vector<std::string>{"save-000002-step-000000002"});
        EXPECT_EQ(files.list(kFolder).size(), 2U);  // the checkpoint and `latest`
      }
    });
  };
  const std::vector<std::pair<std::string, std::string>> failures{
      {"create", "rank-00002"}, {"reserve", "rank-00001"}, {"write", "rank-00001"},  {"sync", "rank-00000"},
      {"write", "manifest"},    {"sync", "manifest"},      {"rename", "save-000002"}};
  for (const auto& [operation, part] : failures) {
    SCOPED_TRACE(operation + " " + part);
    CrashingFiles files;
    run(files, operation, part);
  }
}

}  // namespace
}  // namespace shardplan::test
