// Optimizer states in a file, and everything that can go wrong with it: each fault at each operation of a step, a file that others
// spoil, kernels that fail, a process that is killed. A named error with path and offset; before the commit point nothing
// has changed, after it the next call finishes the step; in either case with the bits of an undisturbed run.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "base/error.h"
#include "offload/file_tier.h"
#include "tests/shard/offload_trial.h"
#include "tests/support/run_ranks.h"
#include "tests/support/whole_grid.h"

namespace shardplan::test {
namespace {

TEST(OffloadFaults, EveryFaultAtEveryOperationOfAStep) {
  for (const int threads : {0, 2}) {
    const auto setup = trial_setup("optimizer=file", threads == 0 ? "bf16-mixed" : "fp32", threads == 0 ? 0 : 3);
    for (const TierFault fault : {TierFault::io_error, TierFault::no_space, TierFault::short_write,
                                  TierFault::short_read, TierFault::read_flip}) {
      fail_transfers(setup, threads, fault, test_support::whole_grid() ? 1 : 29,
                     [](ZeroOptimizer& optimizer, std::uint64_t before) {
                       EXPECT_TRUE(optimizer.step_interrupted());
                       EXPECT_EQ(optimizer.steps_applied(), before + 1);
                     });
    }
  }
}

// The begin() of the next step finishes the interrupted one too.
TEST(OffloadFaults, BeginFinishesAnInterruptedStep) {
  const auto setup = trial_setup("optimizer=file");
  const Trained expected = trial_expected(odd_catalog(), setup);
  Trial run(setup);
  run.with(2, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    run.step(optimizer, client, 0);
    run.tier->arm(TierFault::short_write, 5);
    EXPECT_THROW(run.step(optimizer, client, 1), IoError);
    EXPECT_TRUE(optimizer.step_interrupted());
    run.step(optimizer, client, 2);
    EXPECT_EQ(parameters_of(optimizer), expected.parameters);
  });
}

// A disk that lies: the write is acknowledged and one bit is wrong. The block is named, step after step; it is not trained on.
TEST(OffloadFaults, AWriteThatLiesIsFoundInTheNextStepAndNeverTrainedOn) {
  const auto setup = trial_setup("optimizer=file");
  Trial run(setup);
  run.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    run.step(optimizer, client, 0);
    run.tier->arm(TierFault::write_flip, 3);
    run.step(optimizer, client, 1);
    ASSERT_TRUE(run.tier->struck());
    for (int attempt = 0; attempt < 3; ++attempt) {
      expect_wrong_block(run, [&] { attempt == 0 ? client.run_step(optimizer, 2) : optimizer.step(); });
    }
  });
}

// Somebody else's bytes in the file: named, and once the old bytes are back the step ends as if nothing had been.
TEST(OffloadFaults, AFileThatSomebodyChangedIsNamedAndTheStepEndsOnceItIsRestored) {
  const auto setup = trial_setup("optimizer=file", "fp32", 3);
  const Trained expected = trial_expected(odd_catalog(), setup);
  Trial run(setup);
  run.with(2, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    run.step(optimizer, client, 0);
    const auto flip = [&](std::uint64_t offset) {
      const int file = open(run.path().c_str(), O_RDWR | O_CLOEXEC);
      ASSERT_GE(file, 0);
      std::byte byte{};
      ASSERT_EQ(pread(file, &byte, 1, static_cast<off_t>(offset)), 1);
      byte ^= std::byte{1};
      ASSERT_EQ(pwrite(file, &byte, 1, static_cast<off_t>(offset)), 1);
      fsync(file);
      close(file);
    };
    const std::uint64_t offset = run.plan.file.bytes.count() / 2 + 17;
    flip(offset);
    try {
      run.step(optimizer, client, 1);
      ADD_FAILURE() << "trained on another's bytes";
    } catch (const IoError& error) {
      EXPECT_LE(error.offset(), offset);
      EXPECT_GT(error.offset() + 2048 * 4, offset);
    }
    EXPECT_TRUE(optimizer.step_interrupted());
    flip(offset);
    run.repeat(optimizer, client, 1);
    run.step(optimizer, client, 2);
    run.outcome.parameters = parameters_of(optimizer);
  });
  EXPECT_EQ(difference(run.outcome, expected), "");
}

// Found before the commit point: the step is forgotten, and can be repeated when the file is whole again.
TEST(OffloadFaults, AFileThatIsRemovedOrCutShortEndsTheStepBeforeItsCommit) {
  for (const bool removed : {true, false}) {
    SCOPED_TRACE(removed ? "removed" : "cut short");
    const auto setup = trial_setup("optimizer=file");
    Trial run(setup);
    run.with(2, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
      run.step(optimizer, client, 0);
      if (removed) {
        ASSERT_EQ(unlink(run.path().c_str()), 0);
      } else {
        ASSERT_EQ(truncate(run.path().c_str(), 12'345), 0);
      }
      const std::uint64_t offset = removed ? 0 : 12'345;
      expect_no_step(run, optimizer, client, offset, offset);
    });
  }
}

// Cut short in the middle of the update: after the commit point.
TEST(OffloadFaults, AFileThatIsCutShortInMidStepIsNamedWithItsOffset) {
  class Cutting final : public ByteTier {
   public:
    Cutting(const FileTierOptions& options, std::uint64_t& reads) : file_(options), path_(options.path), left_(reads) {}
    std::string name() const override { return file_.name(); }
    Bytes bytes() const override { return file_.bytes(); }
    void read(std::uint64_t offset, std::span<std::byte> to) override {
      if (left_ > 0 && --left_ == 0) {
        EXPECT_EQ(truncate(path_.c_str(), 4096), 0);
      }
      file_.read(offset, to);
    }
    void write(std::uint64_t offset, std::span<const std::byte> from) override { file_.write(offset, from); }
    void flush() override { file_.flush(); }
    void check() override { file_.check(); }

   private:
    FileTier file_;
    std::string path_;
    std::uint64_t& left_;
  };
  const auto setup = trial_setup("optimizer=file");
  Trial run(setup);
  std::uint64_t left = 0;
  run_ranks(1, [&](Communicator& world) {
    ZeroOptions options = trial_options(run.folder.path(), 0);
    options.offload.make_tier = [&](const FileTierOptions& file) { return std::make_unique<Cutting>(file, left); };
    ZeroOptimizer optimizer(run.catalog, run.plan, run.cpu, {&world, &world}, options);
    SyntheticClient client(trial_script(), setup, run.plan.layout.units, 0);
    client.run_step(optimizer, 0);
    left = 8;
    try {
      client.run_step(optimizer, 1);
      ADD_FAILURE() << "stepped on a file that was cut";
    } catch (const IoError& error) {
      EXPECT_EQ(error.path(), run.path());
      EXPECT_GE(error.offset(), 4096U);
    }
    EXPECT_TRUE(optimizer.step_interrupted());
    EXPECT_THROW(optimizer.step(), IoError);  // nothing can bring the bytes back
  });
}

// Kernels, copies and waits fail too, in turn, between the transfers.
TEST(OffloadFaults, EveryKernelFailsOnce) {
  const Failures failures = fail_kernels(trial_setup("optimizer=file", "bf16-mixed", 1), 1);
  EXPECT_GT(failures.before_commit, 10U);
  EXPECT_GT(failures.after_commit, 10U);
}

// Killed while a block is being written. What resumes takes the file over, trusts none of its bytes, and goes on from the
// state that was saved.
TEST(OffloadFaults, AProcessThatIsKilledInMidStepResumesWithTheSameBits) {
  expect_killed_runs_resume(trial_setup("optimizer=file"), {1, 7, 20});
}

}  // namespace
}  // namespace shardplan::test
