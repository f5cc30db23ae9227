#include "tests/shard/offload_trial.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <map>
#include <memory>

#include "base/error.h"
#include "offload/file_tier.h"
#include "planner/offload.h"
#include "runtime/failing.h"
#include "tests/support/run_ranks.h"
#include "tests/support/saved_state.h"

namespace shardplan::test {

Setup trial_setup(const char* offload, const char* precision, int stage, std::uint64_t accumulation) {
  Setup setup;
  setup.policy = policy_named(precision);
  setup.stage = stage;
  setup.ema = true;
  setup.accumulation = accumulation;
  setup.offload = parse_offload(offload).offload;
  setup.offload.block_elements = 2048;
  return setup;
}

ZeroOptions trial_options(const std::string& folder, int threads) {
  ZeroOptions options;
  options.clip_norm = 0.5;
  options.initial_values = synthetic_values;
  options.offload.folder = folder;
  options.offload.threads = threads;
  return options;
}

const Script& trial_script(std::uint64_t accumulation) {
  static std::map<std::uint64_t, Script> scripts;
  Script& script = scripts[accumulation];
  script.micro_batches.assign(kTrialSteps, accumulation);
  return script;
}

Trained trial_expected(const Catalog& catalog, Setup setup) {
  setup.offload = {};
  Trained expected = run_reference(catalog, setup, trial_options("", 0), trial_script(setup.accumulation));
  expected.digests.clear();
  return expected;
}

void Trial::with(int threads, const std::function<void(ZeroOptimizer&, SyntheticClient&)>& body, Device* device) {
  run_ranks(1, [&](Communicator& world) {
    ZeroOptions options = trial_options(folder.path(), threads);
    options.offload.make_tier = [&](const FileTierOptions& file) {
      auto made = std::make_unique<FailingTier>(std::make_unique<FileTier>(file));
      tier = made.get();
      return made;
    };
    ZeroOptimizer optimizer(catalog, plan, device == nullptr ? cpu : *device, {&world, &world}, options);
    SyntheticClient client(trial_script(setup.accumulation), setup, plan.layout.units, 0);
    body(optimizer, client);
  });
}

std::uint64_t operations_of_a_step(const Setup& setup) {
  Trial run(setup);
  std::uint64_t operations = 0;
  run.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    run.step(optimizer, client, 0);
    const std::uint64_t before = run.tier->operations();
    run.step(optimizer, client, 1);
    operations = run.tier->operations() - before;
  });
  return operations;
}

Failures fail_transfers(const Setup& setup, int threads, TierFault fault, std::uint64_t apart,
                        const OnFailure& failed) {
  const Trained expected = trial_expected(odd_catalog(), setup);
  const std::uint64_t operations = operations_of_a_step(setup);
  EXPECT_GT(operations, 10U);
  Failures failures;
  std::uint64_t trials = 0;
  // The last operations of a step are writes: a fault of reads strikes in the next step then, which is a case too.
  for (std::uint64_t n = 1; n <= operations && !::testing::Test::HasFailure(); n += apart) {
    SCOPED_TRACE(fmt::format("{} at stage {}, {} threads, fault {}, operation {}", setup.policy.name, setup.stage,
                             threads, static_cast<int>(fault), n));
    ++trials;
    Trial run(setup);
    run.with(threads, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
      run.step(optimizer, client, 0);
      run.tier->arm(fault, n);
      for (std::uint64_t step = 1; step < kTrialSteps; ++step) {
        const std::uint64_t before = optimizer.steps_applied();
        try {
          run.step(optimizer, client, step);
        } catch (const IoError& error) {
          EXPECT_EQ(error.path(), run.path());
          EXPECT_LT(error.offset(), run.plan.file.bytes.count());
          EXPECT_TRUE(run.tier->struck());
          ++(optimizer.step_interrupted() ? failures.after_commit : failures.before_commit);
          failed(optimizer, before);
          run.repeat(optimizer, client, step);
        }
      }
      run.outcome.parameters = parameters_of(optimizer);
    });
    EXPECT_EQ(difference(run.outcome, expected), "");
  }
  EXPECT_EQ(failures.all(), trials) << "fault " << static_cast<int>(fault);
  return failures;
}

Failures fail_kernels(const Setup& setup, std::uint64_t apart) {
  const Trained expected = trial_expected(odd_catalog(), setup);
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  Failures failures;
  for (std::uint64_t fail_at = Countdown::kNever; fail_at <= last && !::testing::Test::HasFailure();
       fail_at = fail_at == Countdown::kNever ? first + 1 : fail_at + apart) {
    SCOPED_TRACE(fmt::format("operation {}", fail_at));
    Trial run(setup);
    Countdown never;
    Countdown work(fail_at);
    FailingDevice device(run.cpu, never, work);
    run.with(
        0,
        [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
          run.step(optimizer, client, 0);
          if (fail_at == Countdown::kNever) first = work.count();
          try {
            run.step(optimizer, client, 1);
            if (fail_at == Countdown::kNever) last = work.count();
          } catch (const Error&) {
            ++(optimizer.step_interrupted() ? failures.after_commit : failures.before_commit);
            run.repeat(optimizer, client, 1);
          }
          run.step(optimizer, client, 2);
          run.outcome.parameters = parameters_of(optimizer);
        },
        &device);
    EXPECT_EQ(difference(run.outcome, expected), "");
  }
  return failures;
}

namespace {

// A write of which half is done when the process is killed.
class KillingTier final : public ByteTier {
 public:
  KillingTier(const FileTierOptions& options, std::uint64_t& writes) : file_(options), left_(writes) {}
  std::string name() const override { return file_.name(); }
  Bytes bytes() const override { return file_.bytes(); }
  void read(std::uint64_t offset, std::span<std::byte> to) override { file_.read(offset, to); }
  void write(std::uint64_t offset, std::span<const std::byte> from) override {
    if (left_ > 0 && --left_ == 0) {
      file_.write(offset, from.first(from.size() / 2));
      kill(getpid(), SIGKILL);
    }
    file_.write(offset, from);
  }
  void flush() override { file_.flush(); }
  void check() override { file_.check(); }

 private:
  FileTier file_;
  std::uint64_t& left_;
};

}  // namespace

void expect_killed_runs_resume(const Setup& setup, const std::vector<std::uint64_t>& writes) {
  const Trained expected = trial_expected(odd_catalog(), setup);
  Trial run(setup);
  SavedState saved(run.catalog);
  run.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    run.step(optimizer, client, 0);
    saved.save(optimizer);
  });
  EXPECT_EQ(saved.flaw(), "");
  for (const std::uint64_t nth : writes) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      run_ranks(1, [&](Communicator& world) {
        std::uint64_t left = 0;
        ZeroOptions options = trial_options(run.folder.path(), 0);
        options.offload.make_tier = [&](const FileTierOptions& file) {
          return std::make_unique<KillingTier>(file, left);
        };
        ZeroOptimizer optimizer(run.catalog, run.plan, run.cpu, {&world, &world}, options);
        SyntheticClient client(trial_script(setup.accumulation), setup, run.plan.layout.units, 0);
        client.run_step(optimizer, 0);
        left = nth;
        client.run_step(optimizer, 1);
      });
      _exit(1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << status << " at write " << nth;
    run.with(2, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
      saved.load(optimizer);
      client.run_step(optimizer, 1);
      client.run_step(optimizer, 2);
      EXPECT_EQ(parameters_of(optimizer), expected.parameters);
    });
  }
}

void expect_wrong_block(const Trial& run, const std::function<void()>& act) {
  try {
    act();
    ADD_FAILURE() << "went on with a wrong block";
  } catch (const IoError& error) {
    EXPECT_EQ(error.path(), run.path());
    EXPECT_NE(std::string(error.what()).find("checksums differ"), std::string::npos) << error.what();
  }
}

void expect_no_step(const Trial& run, ZeroOptimizer& optimizer, SyntheticClient& client, std::uint64_t least,
                    std::uint64_t most) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      client.run_step(optimizer, 1);
      ADD_FAILURE() << "stepped without its file";
    } catch (const IoError& error) {
      EXPECT_EQ(error.path(), run.path());
      EXPECT_GE(error.offset(), least);
      EXPECT_LE(error.offset(), most);
    }
    EXPECT_FALSE(optimizer.step_interrupted());
    EXPECT_EQ(optimizer.steps_applied(), 1U);
  }
}

}  // namespace shardplan::test
