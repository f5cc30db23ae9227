// State out and in: what N ranks have visited is whole, and is the same when M ranks have loaded it, at any stage.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"
#include "tests/shard/training_run.h"
#include "tests/shard/worlds.h"
#include "tests/support/saved_state.h"

namespace shardplan::test {
namespace {

TEST(State, EveryElementIsVisitedOnOneRank) {
  const Catalog catalog = state_catalog();
  for (const char* precision : {"fp32", "bf16-mixed", "bf16"}) {
    for (const auto& setup : small_worlds(precision)) {
      SCOPED_TRACE(fmt::format("{}, {} ranks, {} replicas, stage {}", precision, setup.world_size, setup.replicate,
                               setup.stage));
      SavedState saved(catalog);
      with_world(setup, catalog, state_options(), {}, [&](const Rank& rank) { saved.save(rank.optimizer); });
      EXPECT_EQ(saved.flaw(), "");
      // 25 tensors have elements and are not tied; two in each of three blocks are frozen, and one by itself.
      EXPECT_EQ(saved.count(StateKind::parameter), 25U);
      for (const StateKind kind : {StateKind::first_moment, StateKind::second_moment, StateKind::ema}) {
        EXPECT_EQ(saved.count(kind), 18U) << name(kind);
      }
    }
  }
}

TEST(State, IsTheSameAfterALoadByAnyWorldAtAnyStage) {
  const Catalog catalog = state_catalog();
  const Script script = script_of(2);
  for (const char* precision : {"fp32", "bf16-mixed", "fp16-mixed", "bf16"}) {
    SavedState saved(catalog);
    std::vector<std::vector<float>> parameters;
    with_world(setup_of(precision, 3, 1, 2), catalog, state_options(), script, [&](const Rank& rank) {
      for (std::uint64_t step = 0; step < 2; ++step) rank.client.run_step(rank.optimizer, step);
      saved.save(rank.optimizer);
      const auto seen = parameters_of(rank.optimizer);
      if (rank.rank == 0) parameters = seen;
    });
    for (const auto& setup : small_worlds(precision)) {
      SCOPED_TRACE(fmt::format("{}, {} ranks, {} replicas, stage {}", precision, setup.world_size, setup.replicate,
                               setup.stage));
      SavedState again(catalog);
      with_world(setup, catalog, other_initial_values(), script, [&](const Rank& rank) {
        saved.load(rank.optimizer);
        EXPECT_EQ(parameters_of(rank.optimizer), parameters);
        again.save(rank.optimizer);
      });
      EXPECT_EQ(again.flaw(), "");
      EXPECT_EQ(again.digest(), saved.digest());
    }
  }
}

TEST(State, TrainingGoesOnWithTheSameBitsAtAnyStage) {
  const Catalog catalog = state_catalog();
  Script script = script_of(5);
  script.poisons = {{{.step = 1, .micro_batch = 0, .rank = 1, .unit = 8, .tensor = 0}, INFINITY}};
  for (const char* precision : {"fp32", "fp16-mixed"}) {
    const auto first = setup_of(precision, 2, 1, 1);
    const Trained expected = run_reference(catalog, first, state_options(), script);
    SavedState saved(catalog);
    with_world(first, catalog, state_options(), script, [&](const Rank& rank) {
      for (std::uint64_t step = 0; step < 3; ++step) rank.client.run_step(rank.optimizer, step);
      saved.save(rank.optimizer);
    });
    for (int stage = 0; stage < 4; ++stage) {
      SCOPED_TRACE(fmt::format("{}, stage {}", precision, stage));
      with_world(setup_of(precision, 2, 1, stage), catalog, other_initial_values(), script, [&](const Rank& rank) {
        saved.load(rank.optimizer);
        for (std::uint64_t step = 3; step < 5; ++step) {
          EXPECT_EQ(difference(rank.client.run_step(rank.optimizer, step), expected.reports[step]), "");
        }
        // Parameters as the compute passes saw them, not only the masters: first those that were loaded.
        EXPECT_EQ(rank.client.digests().front(), expected.digests[3 * 2]);
        rank.client.run(rank.optimizer, ProgramKind::evaluate, 0, 0);
        EXPECT_EQ(rank.client.digests().back(), expected.digests.back());
        EXPECT_EQ(parameters_of(rank.optimizer), expected.parameters);
      });
    }
  }
}

void expect_failure(const std::function<void()>& act, const std::string& words) {
  try {
    act();
    ADD_FAILURE() << "no CheckFailure that says " << words;
  } catch (const CheckFailure& failure) {
    EXPECT_NE(std::string(failure.what()).find(words), std::string::npos) << failure.what();
  }
}

TEST(State, ALoadThatFailsMustBeRepeated) {
  const Catalog catalog = state_catalog();
  const Script script = script_of(1);
  SavedState saved(catalog);
  with_world(setup_of("bf16-mixed", 1, 1, 3), catalog, state_options(), script, [&](const Rank& rank) {
    saved.save(rank.optimizer);
    rank.client.run(rank.optimizer, ProgramKind::train_micro_batch, 0, 0);
    rank.client.run(rank.optimizer, ProgramKind::last_micro_batch, 0, 1);
    int calls = 0;
    EXPECT_THROW(rank.optimizer.load_state({},
                                           [&](const StateRange&, const Elements&) {
                                             if (++calls == 5) throw std::runtime_error("no more");
                                           }),
                 std::runtime_error);
    const StateVisitor nothing = [](const StateRange&, const ConstElements&) {};
    expect_failure([&] { rank.optimizer.visit_state(nothing); }, "visit_state() after a load_state() that failed");
    expect_failure([&] { rank.optimizer.begin(ProgramKind::evaluate); }, "begin() after a load_state() that failed");
    expect_failure([&] { parameters_of(rank.optimizer); }, "visit_parameters() after a load_state() that failed");
    expect_failure([&] { rank.optimizer.step(); }, "step() before the last micro-batch has ended");
    saved.load(rank.optimizer);
    SavedState again(catalog);
    again.save(rank.optimizer);
    EXPECT_EQ(again.digest(), saved.digest());
    rank.client.run_step(rank.optimizer, 0);
    EXPECT_EQ(rank.optimizer.steps_applied(), 1U);
  });
}

TEST(State, IsBetweenSteps) {
  const Catalog catalog = state_catalog();
  SavedState saved(catalog);
  with_world(setup_of("fp32", 1, 1, 0), catalog, state_options(), {}, [&](const Rank& rank) {
    saved.save(rank.optimizer);
    rank.optimizer.begin(ProgramKind::evaluate);
    expect_failure([&] { saved.save(rank.optimizer); }, "visit_state() inside of a program");
    expect_failure([&] { saved.load(rank.optimizer); }, "load_state() inside of a program");
  });
}

TEST(State, ALossScaleThatIsNoneChangesNothing) {
  const Catalog catalog = state_catalog();
  SavedState saved(catalog);
  with_world(setup_of("fp32", 1, 1, 0), catalog, state_options(), {}, [&](const Rank& rank) {
    saved.save(rank.optimizer);
    const StateLoader never = [](const StateRange&, const Elements&) { ADD_FAILURE() << "asked for values"; };
    EXPECT_THROW(rank.optimizer.load_state({.loss_scale = -1}, never), ConfigError);
    SavedState again(catalog);
    again.save(rank.optimizer);
    EXPECT_EQ(again.digest(), saved.digest());
  });
}

}  // namespace
}  // namespace shardplan::test
