// One rank whose states are in a file that can be made to fail, for tests of what happens then.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "offload/failing_tier.h"
#include "runtime/cpu_device.h"
#include "tests/shard/training_run.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {

inline constexpr std::uint64_t kTrialSteps = 3;

// Blocks so small that a buffer of the odd catalog has several.
Setup trial_setup(const char* offload, const char* precision = "bf16-mixed", int stage = 0,
                  std::uint64_t accumulation = 1);
ZeroOptions trial_options(const std::string& folder, int threads);
// kTrialSteps steps of `accumulation` micro-batches. Lives as long as the program: clients keep a reference.
const Script& trial_script(std::uint64_t accumulation = 1);
// What comes of it without offload.
Trained trial_expected(const Catalog& catalog, Setup setup);

// One rank's optimizer, its client and the tier beneath.
struct Trial {
  Catalog catalog = odd_catalog();
  Setup setup;
  StepPlan plan;
  test_support::TemporaryFolder folder;
  CpuDevice cpu;
  FailingTier* tier = nullptr;
  Trained outcome;

  explicit Trial(const Setup& asked) : setup(asked), plan(make_step_plan(catalog, setup)) {}

  std::string path() const { return folder.path("shardplan-rank-0.tier"); }

  void with(int threads, const std::function<void(ZeroOptimizer&, SyntheticClient&)>& body, Device* device = nullptr);

  void step(ZeroOptimizer& optimizer, SyntheticClient& client, std::uint64_t number) {
    outcome.reports.push_back(client.run_step(optimizer, number));
  }
  // As a client does it: the step again, or its end.
  void repeat(ZeroOptimizer& optimizer, SyntheticClient& client, std::uint64_t number) {
    outcome.reports.push_back(optimizer.step_interrupted() ? optimizer.step() : client.run_step(optimizer, number));
  }
};

// The operations of one step of the tier.
std::uint64_t operations_of_a_step(const Setup& setup);

struct Failures {
  std::uint64_t before_commit = 0;
  std::uint64_t after_commit = 0;
  std::uint64_t all() const { return before_commit + after_commit; }
};

// A run for each `apart`-th operation of the tier in the second step, which fails in that way; the client repeats what fails,
// and the run ends as expected, with one failure. `failed` looks at each: the optimizer, and the steps that it had applied
// before the one that failed.
using OnFailure = std::function<void(ZeroOptimizer&, std::uint64_t steps_before)>;
Failures fail_transfers(const Setup& setup, int threads, TierFault fault, std::uint64_t apart, const OnFailure& failed);
// The same of each `apart`-th kernel, copy and wait of the second step.
Failures fail_kernels(const Setup& setup, std::uint64_t apart);

// For each number: a process is killed in the middle of that write of its second step. What takes its file over trusts no byte of
// it, and ends as expected from the state that was saved after the first.
void expect_killed_runs_resume(const Setup& setup, const std::vector<std::uint64_t>& writes);

// That `act` meets a block of the run's file that is not what was written.
void expect_wrong_block(const Trial& run, const std::function<void()>& act);
// That the second step, asked for twice, fails before its commit, at an offset of the file from `least` to `most`.
void expect_no_step(const Trial& run, ZeroOptimizer& optimizer, SyntheticClient& client, std::uint64_t least,
                    std::uint64_t most);

}  // namespace shardplan::test
