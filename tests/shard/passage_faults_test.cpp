// Gradients and parameters in a file, and everything that can go wrong with it: as offload_faults_test.cpp has it of optimizer
// states. These are read and written before the commit point too: then nothing has changed, and the step can be repeated.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"
#include "offload/file_tier.h"
#include "tests/shard/offload_trial.h"
#include "tests/support/run_ranks.h"
#include "tests/support/saved_state.h"
#include "tests/support/whole_grid.h"

namespace shardplan::test {
namespace {

constexpr const char* kAll = "optimizer=file,gradients=file,parameters=file";

// Parameters without a master are read by the update; sums of micro-batches are read and written in turn.
std::array<Setup, 5> setups() {
  Setup locally = trial_setup("gradients=file", "bf16-mixed", 0, 3);
  locally.cadence = Cadence::step;
  return {trial_setup("gradients=file", "bf16-mixed", 2, 2), locally, trial_setup("parameters=file", "bf16-mixed", 3),
          trial_setup("parameters=file", "fp32", 0), trial_setup(kAll, "bf16", 3, 2)};
}

// Whatever failed: nothing has changed, or the step is to be finished.
void expect_forgotten_or_interrupted(ZeroOptimizer& optimizer, std::uint64_t steps_before,
                                     const std::vector<std::vector<float>>& parameters_before) {
  const bool interrupted = optimizer.step_interrupted();
  EXPECT_EQ(optimizer.steps_applied(), steps_before + (interrupted ? 1 : 0));
  if (!interrupted) {
    EXPECT_EQ(parameters_of(optimizer), parameters_before);
  }
}

// Before each step of a run in which nothing fails.
std::vector<std::vector<std::vector<float>>> undisturbed_parameters(const Setup& setup) {
  std::vector<std::vector<std::vector<float>>> parameters;
  Trial run(setup);
  run.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    for (std::uint64_t step = 0; step < kTrialSteps; ++step) {
      parameters.push_back(parameters_of(optimizer));
      run.step(optimizer, client, step);
    }
  });
  return parameters;
}

TEST(PassageFaults, EveryFaultAtEveryOperationOfAStep) {
  Failures all;
  int threads = 0;
  for (const shardplan::Setup& setup : setups()) {
    threads = 2 - threads;
    const std::vector<std::vector<std::vector<float>>> parameters = undisturbed_parameters(setup);
    for (const TierFault fault : {TierFault::io_error, TierFault::no_space, TierFault::short_write,
                                  TierFault::short_read, TierFault::read_flip}) {
      const Failures failures = fail_transfers(setup, threads, fault, test_support::whole_grid() ? 1 : 23,
                                               [&](ZeroOptimizer& optimizer, std::uint64_t before) {
                                                 expect_forgotten_or_interrupted(optimizer, before, parameters[before]);
                                               });
      all.before_commit += failures.before_commit;
      all.after_commit += failures.after_commit;
    }
  }
  EXPECT_GT(all.before_commit, 10U);
  EXPECT_GT(all.after_commit, 10U);
}

// A disk that lies about gradients is found when the norm reads them: before the commit, so that the step is repeated, with
// gradients that are made anew.
TEST(PassageFaults, AGradientThatWasWrittenWrongIsFoundBeforeTheCommit) {
  for (const std::uint64_t accumulation : {1U, 2U}) {
    const shardplan::Setup setup = trial_setup("gradients=file", "bf16-mixed", 2, accumulation);
    const Trained expected = trial_expected(odd_catalog(), setup);
    Trial run(setup);
    run.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
      run.step(optimizer, client, 0);
      run.tier->arm(TierFault::write_flip, 3);
      expect_wrong_block(run, [&] { run.step(optimizer, client, 1); });
      EXPECT_FALSE(optimizer.step_interrupted());
      EXPECT_EQ(optimizer.steps_applied(), 1U);
      run.repeat(optimizer, client, 1);
      run.step(optimizer, client, 2);
      run.outcome.parameters = parameters_of(optimizer);
    });
    EXPECT_EQ(difference(run.outcome, expected), "");
  }
}

// About parameters: found by the next forward that needs them, and by every one after it.
TEST(PassageFaults, AParameterThatWasWrittenWrongIsNeverTrainedOn) {
  Trial run(trial_setup("parameters=file"));
  run.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    run.step(optimizer, client, 0);
    run.tier->arm(TierFault::write_flip, 1);
    run.step(optimizer, client, 1);
    ASSERT_TRUE(run.tier->struck());
    for (int attempt = 0; attempt < 3; ++attempt) {
      expect_wrong_block(run, [&] { client.run_step(optimizer, 2); });
      EXPECT_FALSE(optimizer.step_interrupted());
      EXPECT_EQ(optimizer.steps_applied(), 2U);
    }
  });
}

// A load that meets such a block fails, once: the next one makes the file anew.
TEST(PassageFaults, ALoadAfterOneThatFailedNeedsNothingOfTheFile) {
  for (const char* placement : {"parameters=file", "optimizer=file", "optimizer=file,parameters=file"}) {
    SCOPED_TRACE(placement);
    SavedState saved(odd_catalog());
    Trial undisturbed(trial_setup(placement));
    std::vector<std::vector<float>> expected;
    undisturbed.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
      undisturbed.step(optimizer, client, 0);
      saved.save(optimizer);
      undisturbed.step(optimizer, client, 1);
      expected = parameters_of(optimizer);
    });
    std::uint64_t operations = 0;
    undisturbed.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient&) {
      const std::uint64_t before = undisturbed.tier->operations();
      saved.load(optimizer);
      operations = undisturbed.tier->operations() - before;
    });
    std::uint64_t failed = 0;
    std::uint64_t twice = 0;
    for (const TierFault fault : {TierFault::short_write, TierFault::write_flip, TierFault::io_error}) {
      const std::uint64_t apart =
          test_support::whole_grid() ? 1 : operations / (fault == TierFault::short_write ? 8 : 4) + 1;
      for (std::uint64_t n = 1; n <= operations; n += apart) {
        Trial run(trial_setup(placement));
        run.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
          run.step(optimizer, client, 0);
          run.tier->arm(fault, n);
          bool loaded = false;
          for (int attempt = 0; attempt < 3 && !loaded; ++attempt) {
            try {
              saved.load(optimizer);
              loaded = true;
            } catch (const IoError&) {
              failed += 1;
              twice += attempt > 0 ? 1U : 0U;
            }
          }
          ASSERT_TRUE(loaded) << "fault " << static_cast<int>(fault) << " at operation " << n;
          try {
            client.run_step(optimizer, 1);
          } catch (const IoError&) {
            // A write that went wrong in silence is found when it is read. Loads make good of it.
            if (optimizer.step_interrupted()) return;
            EXPECT_THROW(saved.load(optimizer), IoError);
            saved.load(optimizer);
            client.run_step(optimizer, 1);
          }
          EXPECT_EQ(parameters_of(optimizer), expected);
        });
      }
    }
    EXPECT_GT(failed, 3U);
    EXPECT_EQ(twice, 0U);
  }
}

// Two ranks, of which one has a bad disk.
struct TwoRanks {
  explicit TwoRanks(const char* placement) : setup(trial_setup(placement, "bf16-mixed", 2)) {
    setup.world_size = 2;
    plan = make_step_plan(catalog, setup);
    expected = trial_expected(catalog, setup).parameters;
  }

  // body(rank, optimizer, client, rank 1's tier), on both.
  void run(const std::function<void(int, ZeroOptimizer&, SyntheticClient&, FailingTier*)>& body) {
    const test_support::TemporaryFolder folder;
    const Script& script = trial_script();
    CpuDevice cpu;
    run_ranks(2, [&](Communicator& world) {
      FailingTier* tier = nullptr;
      ZeroOptions options = trial_options(folder.path(), 2);
      options.offload.make_tier = [&](const FileTierOptions& file) {
        auto made = std::make_unique<FailingTier>(std::make_unique<FileTier>(file));
        tier = made.get();
        return made;
      };
      ZeroOptimizer optimizer(catalog, plan, cpu, {&world, &world}, options);
      SyntheticClient client(script, setup, plan.layout.units, world.rank());
      body(world.rank(), optimizer, client, tier);
    });
  }

  Catalog catalog = odd_catalog();
  Setup setup;
  StepPlan plan;
  std::vector<std::vector<float>> expected;
};

// The fault is met by the norm: every rank is told, and takes the step again.
TEST(PassageFaults, OnTwoRanksAGradientThatIsLostIsToldToBoth) {
  TwoRanks two("gradients=file");
  two.run([&](int rank, ZeroOptimizer& optimizer, SyntheticClient& client, FailingTier* tier) {
    client.run_step(optimizer, 0);
    if (rank == 1) tier->arm(TierFault::write_flip, 1);
    try {
      client.run_step(optimizer, 1);
      ADD_FAILURE() << "rank " << rank << " stepped";
    } catch (const IoError& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find(rank == 1 ? "checksums differ" : "the file of rank 1"), std::string::npos) << what;
    }
    EXPECT_EQ(optimizer.steps_applied(), 1U);
    for (std::uint64_t step = 1; step < kTrialSteps; ++step) client.run_step(optimizer, step);
    EXPECT_EQ(parameters_of(optimizer), two.expected);
  });
}

// Inside of a program the other rank is on its way into a collective: it hears of it at once, and not after the deadline.
TEST(PassageFaults, OnTwoRanksADiskThatFailsInAProgramEndsBoth) {
  TwoRanks two("parameters=file");
  two.run([&](int rank, ZeroOptimizer& optimizer, SyntheticClient& client, FailingTier* tier) {
    client.run_step(optimizer, 0);
    if (rank == 1) tier->arm(TierFault::io_error, 1);
    if (rank == 1) {
      EXPECT_THROW(client.run_step(optimizer, 1), IoError);
    } else {
      try {
        client.run_step(optimizer, 1);
        ADD_FAILURE() << "stepped";
      } catch (const CommunicationError& error) {
        EXPECT_NE(std::string(error.what()).find("shardplan-rank-1.tier"), std::string::npos) << error.what();
      }
    }
    EXPECT_EQ(optimizer.steps_applied(), 1U);
  });
}

TEST(PassageFaults, AFileThatIsRemovedOrCutShortEndsTheStepBeforeItsCommit) {
  for (const char* placement : {"gradients=file", "parameters=file"}) {
    for (const bool removed : {true, false}) {
      SCOPED_TRACE(fmt::format("{} {}", placement, removed ? "removed" : "cut short"));
      Trial run(trial_setup(placement));
      run.with(2, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
        run.step(optimizer, client, 0);
        if (removed) {
          ASSERT_EQ(unlink(run.path().c_str()), 0);
        } else {
          ASSERT_EQ(truncate(run.path().c_str(), 4096), 0);
        }
        // Writes of gradients make a file that was cut short whole again; its removal stays.
        if (!removed && std::string(placement) == "gradients=file") {
          client.run_step(optimizer, 1);
          EXPECT_EQ(optimizer.steps_applied(), 2U);
          return;
        }
        expect_no_step(run, optimizer, client, removed ? 0 : 4096, run.plan.file.bytes.count());
      });
    }
  }
}

// Kernels, copies and waits fail too, in turn, between the transfers.
TEST(PassageFaults, EveryKernelFailsOnce) {
  for (const shardplan::Setup& setup :
       {trial_setup(kAll, "bf16-mixed", 1, 2), trial_setup("gradients=file,parameters=file", "bf16", 0)}) {
    const Failures failures = fail_kernels(setup, test_support::whole_grid() ? 1 : 5);
    EXPECT_GT(failures.before_commit, 5U);
    EXPECT_GT(failures.after_commit, 5U);
  }
}

// Killed while a gradient, or what an update has changed, is being written.
TEST(PassageFaults, AProcessThatIsKilledInMidStepResumesWithTheSameBits) {
  expect_killed_runs_resume(trial_setup(kAll, "bf16-mixed", 3, 2), {1, 9, 40, 60});
}

// A visitor that throws leaves a unit in its slot: the next step, and the next look, go on without it.
TEST(PassageFaults, AVisitorThatThrowsLeavesNothingBehind) {
  const shardplan::Setup setup = trial_setup(kAll, "bf16", 3);
  const Trained expected = trial_expected(odd_catalog(), setup);
  Trial run(setup);
  run.with(2, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    for (std::uint64_t step = 0; step < kTrialSteps; ++step) {
      std::uint64_t left = 2 * step;
      const auto visit = [&](const StateRange&, const ConstElements&) {
        if (left-- == 0) throw std::runtime_error("enough");
      };
      EXPECT_THROW(optimizer.visit_state(visit), std::runtime_error);
      run.step(optimizer, client, step);
    }
    run.outcome.parameters = parameters_of(optimizer);
  });
  EXPECT_EQ(difference(run.outcome, expected), "");
}

// The same between the last micro-batch and the step, which must not meet the unit that was looked at, and after it.
TEST(PassageFaults, AVisitorThatThrowsBeforeTheStepLeavesNothingBehind) {
  for (const char* placement : {kAll, "parameters=file", "optimizer=file"}) {
    const shardplan::Setup setup = trial_setup(placement, "bf16", 0);
    // Every gradient is zero: weights decay.
    const auto digest_after = [&](std::uint64_t visits) {
      Trial run(setup);
      std::uint64_t digest = 0;
      run.with(2, [&](ZeroOptimizer& optimizer, SyntheticClient&) {
        const std::uint64_t units = run.plan.layout.units;
        optimizer.begin(ProgramKind::last_micro_batch);
        for (std::uint64_t unit = 0; unit < 2 * units; ++unit) {
          const bool forward = unit < units;
          optimizer.enter(forward ? unit : 2 * units - 1 - unit, forward ? Pass::forward : Pass::backward);
          optimizer.leave(forward ? unit : 2 * units - 1 - unit);
        }
        std::uint64_t left = visits;
        const auto visit = [&](const StateRange&, const ConstElements&) {
          if (left-- == 0) throw std::runtime_error("enough");
        };
        if (visits > 0) {
          EXPECT_THROW(optimizer.visit_state(visit), std::runtime_error);
        }
        EXPECT_FALSE(optimizer.step().skipped);
        SavedState saved(run.catalog);
        saved.save(optimizer);
        digest = saved.digest();
      });
      return digest;
    };
    const std::uint64_t expected = digest_after(0);
    for (std::uint64_t visits = 1; visits < 40; visits += 3) {
      EXPECT_EQ(digest_after(visits), expected) << placement << ", visit " << visits;
    }
  }
}

}  // namespace
}  // namespace shardplan::test
