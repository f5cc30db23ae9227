// A step is a transaction with one commit point: whatever fails, in turn, either nothing has changed and the step can be
// repeated, or the next call finishes it; both with the bits of an undisturbed run.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/failing.h"
#include "tests/shard/training_run.h"
#include "tests/support/run_ranks.h"

namespace shardplan::test {
namespace {

// Remembers where the one allocation of its rank is.
class WatchedDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override {
    auto memory = ForwardingDevice::allocate(request);
    if (request.tier == MemoryTier::device) data_ = memory->data();
    return memory;
  }
  const std::byte* data() const { return data_; }

 private:
  const std::byte* data_ = nullptr;
};

// Every byte of parameters, masters, moments and averages, loss scale and step number.
struct State {
  std::vector<std::byte> bytes;
  double loss_scale = 0;
  std::uint64_t steps = 0;
  bool operator==(const State&) const = default;
};

State state_of(const StepPlan& plan, const WatchedDevice& device, const ZeroOptimizer& optimizer) {
  State state{.bytes = {}, .loss_scale = optimizer.loss_scale(), .steps = optimizer.steps_applied()};
  for (const Array& array : plan.device.arrays) {
    const bool kept = array.role == BufferRole::parameter || array.role == BufferRole::master ||
                      array.role == BufferRole::first_moment || array.role == BufferRole::second_moment ||
                      array.role == BufferRole::ema;
    if (!kept) continue;
    for (std::uint64_t i = 0; i < array.count; ++i) {
      const std::byte* first = device.data() + (array.offset + i * array.stride).count();
      state.bytes.insert(state.bytes.end(), first, first + array.bytes.count());
    }
  }
  return state;
}

Setup setup_for(const std::string& precision, std::uint64_t world, int stage, std::uint64_t accumulation) {
  Setup setup;
  setup.policy = policy_named(precision);
  setup.world_size = world;
  setup.stage = stage;
  setup.accumulation = accumulation;
  setup.ema = true;
  return setup;
}

ZeroOptions options_of(double loss_scale = 1) {
  ZeroOptions options;
  options.clip_norm = 0.5;
  options.initial_values = synthetic_values;
  options.loss_scaling = {.rule = LossScaleRule::torch, .initial = loss_scale, .window = 2, .minimum = 0};
  return options;
}

struct Failures {
  std::uint64_t before = 0;  // the commit point
  std::uint64_t after = 0;
};

// One rank's three steps, of which one operation of the second fails. The client does what clients do: it repeats the
// step, or calls step() again where it was interrupted.
struct Disturbed {
  std::uint64_t first = 0;  // operations up to the second step, and to its end
  std::uint64_t last = 0;
  bool failed = false;
  bool after_commit = false;
  Trained outcome;
};

Disturbed disturbed_rank(const Catalog& catalog, const StepPlan& plan, const Script& script, Device& cpu,
                         Communicator& world, std::uint64_t fail_at) {
  Disturbed result;
  Countdown never;
  Countdown work(fail_at);
  WatchedDevice watched(cpu);
  FailingDevice device(watched, never, work);
  const RankGroups groups(world, plan.setup);
  ZeroOptimizer optimizer(catalog, plan, device, groups.communicators(), options_of());
  SyntheticClient client(script, plan.setup, plan.layout.units, world.rank());
  result.outcome.reports.push_back(client.run_step(optimizer, 0));
  result.first = work.count();
  const State before = state_of(plan, watched, optimizer);
  try {
    result.outcome.reports.push_back(client.run_step(optimizer, 1));
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("was to fail"), std::string::npos) << error.what();
    result.failed = true;
    result.after_commit = optimizer.step_interrupted();
    if (result.after_commit) {
      EXPECT_EQ(optimizer.steps_applied(), before.steps + 1);
      result.outcome.reports.push_back(optimizer.step());
    } else {
      EXPECT_EQ(state_of(plan, watched, optimizer), before);
      result.outcome.reports.push_back(client.run_step(optimizer, 1));
    }
  }
  result.last = work.count();
  result.outcome.reports.push_back(client.run_step(optimizer, 2));
  result.outcome.parameters = parameters_of(optimizer);
  return result;
}

// Fails each kernel, copy and zeroing of a step once, the n-th on every rank at the same time.
Failures fail_each_kernel(const Setup& setup) {
  const Catalog catalog = odd_catalog();
  const StepPlan plan = make_step_plan(catalog, setup);
  Script script;
  script.micro_batches.assign(3, setup.accumulation);
  Trained expected = run_reference(catalog, setup, options_of(), script);
  expected.digests.clear();
  CpuDevice cpu;
  const auto run = [&](const std::function<std::uint64_t(std::size_t rank)>& fail_at) {
    std::vector<Disturbed> ranks(setup.world_size);
    run_ranks(static_cast<int>(setup.world_size), [&](Communicator& world) {
      const auto rank = static_cast<std::size_t>(world.rank());
      ranks[rank] = disturbed_rank(catalog, plan, script, cpu, world, fail_at(rank));
    });
    for (const Disturbed& rank : ranks) EXPECT_EQ(difference(rank.outcome, expected), "");
    return ranks;
  };
  const std::vector<Disturbed> undisturbed = run([](std::size_t) { return Countdown::kNever; });
  Failures failures;
  std::uint64_t most = 0;
  for (const Disturbed& rank : undisturbed) most = std::max(most, rank.last - rank.first);
  for (std::uint64_t n = 1; n <= most && !::testing::Test::HasFailure(); ++n) {
    SCOPED_TRACE(fmt::format("operation {}", n));
    const auto ranks = run([&](std::size_t rank) {
      const Disturbed& plain = undisturbed[rank];
      return plain.first + n <= plain.last ? plain.first + n : Countdown::kNever;
    });
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      EXPECT_EQ(ranks[rank].failed, undisturbed[rank].first + n <= undisturbed[rank].last);
      if (ranks[rank].failed) ++(ranks[rank].after_commit ? failures.after : failures.before);
    }
  }
  return failures;
}

TEST(TransactionTest, EveryKernelFailsOnceOnOneRank) {
  for (const auto& [precision, stage, accumulation] : {std::tuple{"bf16-mixed", 0, 2}, std::tuple{"fp32", 1, 1},
                                                       std::tuple{"fp16-mixed", 3, 2}, std::tuple{"bf16", 2, 1}}) {
    SCOPED_TRACE(fmt::format("{} stage {}", precision, stage));
    const Failures failures =
        fail_each_kernel(setup_for(precision, 1, stage, static_cast<std::uint64_t>(accumulation)));
    EXPECT_GT(failures.before, 10U);
    EXPECT_GT(failures.after, 10U);
  }
}

TEST(TransactionTest, EveryKernelFailsOnceOnTwoRanks) {
  for (const int stage : {0, 1, 2, 3}) {
    SCOPED_TRACE(fmt::format("stage {}", stage));
    const Failures failures = fail_each_kernel(setup_for("bf16-mixed", 2, stage, 1));
    EXPECT_GT(failures.before, 10U);
    EXPECT_GT(failures.after, 10U);
  }
}

// The begin() of the next step finishes an interrupted one too.
TEST(TransactionTest, BeginFinishesAnInterruptedStep) {
  const Catalog catalog = odd_catalog();
  const auto setup = setup_for("bf16-mixed", 1, 0, 1);
  const StepPlan plan = make_step_plan(catalog, setup);
  Script script;
  script.micro_batches = {1, 1};
  const Trained expected = run_reference(catalog, setup, options_of(), script);
  CpuDevice cpu;
  std::uint64_t interrupted = 0;
  std::uint64_t operations = 1;  // up to the end of the first step
  std::uint64_t made = 0;        // of these, the constructor's
  for (std::uint64_t fail_at = Countdown::kNever; fail_at <= operations; fail_at = std::max(fail_at, made) + 1) {
    run_ranks(1, [&](Communicator& world) {
      Countdown never;
      Countdown work(fail_at);
      FailingDevice device(cpu, never, work);
      const RankGroups groups(world, setup);
      ZeroOptimizer optimizer(catalog, plan, device, groups.communicators(), options_of());
      made = work.count();
      SyntheticClient client(script, setup, plan.layout.units, 0);
      try {
        client.run_step(optimizer, 0);
        EXPECT_EQ(fail_at, Countdown::kNever);
        operations = work.count();
      } catch (const Error&) {
        if (optimizer.step_interrupted()) {
          ++interrupted;
        } else {
          client.run_step(optimizer, 0);
        }
      }
      client.run_step(optimizer, 1);
      EXPECT_FALSE(optimizer.step_interrupted());
      EXPECT_EQ(parameters_of(optimizer), expected.parameters) << "failure " << fail_at;
    });
  }
  EXPECT_GT(interrupted, 10U);
}

// Collectives that fail poison the communicators: the step cannot be repeated with them, but before the commit point no
// byte has changed, and the peers hear of it.
TEST(TransactionTest, EveryCollectiveFailsOnce) {
  const Catalog catalog = odd_catalog();
  Script script;
  script.micro_batches = {2, 2};
  for (const int stage : {0, 1, 2, 3}) {
    const auto setup = setup_for("fp16-mixed", 2, stage, 2);
    const StepPlan plan = make_step_plan(catalog, setup);
    CpuDevice cpu;
    std::uint64_t failures = 0;
    for (std::uint64_t fail_at = 1;; ++fail_at) {
      SCOPED_TRACE(fmt::format("stage {} call {}", stage, fail_at));
      bool struck = false;
      const auto outcomes = outcomes_of_ranks(2, [&](std::unique_ptr<Communicator> inner) {
        const bool fails_here = inner->rank() == static_cast<int>(fail_at % 2);
        Countdown calls(fails_here ? fail_at : Countdown::kNever);
        FailingCommunicator world(std::move(inner), calls);
        WatchedDevice watched(cpu);
        const RankGroups groups(world, setup);
        ZeroOptimizer optimizer(catalog, plan, watched, groups.communicators(), options_of(1024));
        SyntheticClient client(script, setup, plan.layout.units, world.rank());
        for (const std::uint64_t step : {0U, 1U}) {
          const State before = state_of(plan, watched, optimizer);
          try {
            client.run_step(optimizer, step);
          } catch (const CommunicationError&) {
            if (fails_here) struck = true;
            if (optimizer.step_interrupted()) {
              EXPECT_EQ(optimizer.steps_applied(), before.steps + 1);
              EXPECT_THROW(optimizer.step(), CommunicationError);
            } else {
              EXPECT_EQ(state_of(plan, watched, optimizer), before);
              EXPECT_THROW(client.run_step(optimizer, step), CommunicationError);
            }
            throw;
          }
        }
      });
      const bool both = outcomes[0] && outcomes[1];
      EXPECT_EQ(both, static_cast<bool>(outcomes[0]) || static_cast<bool>(outcomes[1]));
      if (struck) ++failures;
      if (!both || HasFailure()) break;
    }
    EXPECT_GT(failures, 10U) << "stage " << stage;
  }
}

// A gradient that is not finite on one rank skips the step on all of them.
TEST(TransactionTest, OneBadGradientSkipsTheStepOnEveryRankAndChangesNoByte) {
  const Catalog catalog = odd_catalog();
  for (const Policy& policy : all_policies()) {
    for (const float value : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()}) {
      for (const int stage : {0, 1, 2, 3}) {
        SCOPED_TRACE(fmt::format("{} {} stage {}", policy.name, value, stage));
        const auto setup = setup_for(policy.name, 3, stage, 1);
        const StepPlan plan = make_step_plan(catalog, setup);
        Script script;
        script.micro_batches = {1, 1, 1};
        script.poisons = {{{.step = 1, .micro_batch = 0, .rank = 1, .unit = 8, .tensor = 0}, value}};
        CpuDevice cpu;
        run_ranks(3, [&](Communicator& world) {
          WatchedDevice watched(cpu);
          const RankGroups groups(world, setup);
          ZeroOptimizer optimizer(catalog, plan, watched, groups.communicators(), options_of(1024));
          SyntheticClient client(script, setup, plan.layout.units, world.rank());
          EXPECT_FALSE(client.run_step(optimizer, 0).skipped);
          State before = state_of(plan, watched, optimizer);
          const StepReport report = client.run_step(optimizer, 1);
          EXPECT_TRUE(report.skipped);
          EXPECT_EQ(report.next_loss_scale, 512);
          before.loss_scale = 512;
          EXPECT_EQ(state_of(plan, watched, optimizer), before);
          EXPECT_FALSE(client.run_step(optimizer, 2).skipped);
          EXPECT_EQ(optimizer.steps_applied(), 2U);
        });
      }
    }
  }
}

TEST(TransactionTest, AnAllocationThatFailsIsOutOfMemoryOnItsRankAndHeardOfOnTheOthers) {
  const Catalog catalog = odd_catalog();
  const auto setup = setup_for("bf16-mixed", 2, 3, 1);
  const StepPlan plan = make_step_plan(catalog, setup);
  CpuDevice cpu;
  const auto outcomes = outcomes_of_ranks(2, [&](std::unique_ptr<Communicator> world) {
    Countdown allocations(world->rank() == 1 ? 1 : Countdown::kNever);
    Countdown never;
    FailingDevice device(cpu, allocations, never);
    const RankGroups groups(*world, setup);
    const ZeroOptimizer optimizer(catalog, plan, device, groups.communicators(), options_of());
  });
  EXPECT_THROW(std::rethrow_exception(outcomes[0]), CommunicationError);
  try {
    std::rethrow_exception(outcomes[1]);
  } catch (const OutOfMemory& error) {
    EXPECT_EQ(error.requested(), plan.device.bytes);
  }
}

}  // namespace
}  // namespace shardplan::test
