// Wrong use, ranks that disagree, die or are slow.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/delaying.h"
#include "tests/shard/training_run.h"
#include "tests/support/config_error.h"
#include "tests/support/run_ranks.h"
#include "tests/support/thread_exchange.h"

namespace shardplan::test {
namespace {

using test_support::expect_config_error;
using namespace std::chrono_literals;

ZeroOptions plain_options() {
  ZeroOptions options;
  options.initial_values = synthetic_values;
  return options;
}

Setup setup_for(std::uint64_t world, int stage, std::uint64_t accumulation) {
  Setup setup;
  setup.world_size = world;
  setup.stage = stage;
  setup.accumulation = accumulation;
  return setup;
}

// One rank, at `accumulation` micro-batches per step.
void with_optimizer(std::uint64_t accumulation, const std::function<void(ZeroOptimizer&, SyntheticClient&)>& body) {
  const Catalog catalog = odd_catalog();
  const auto setup = setup_for(1, 3, accumulation);
  const StepPlan plan = make_step_plan(catalog, setup);
  Script script;
  script.micro_batches = {accumulation, accumulation};
  CpuDevice cpu;
  run_ranks(1, [&](Communicator& world) {
    const RankGroups groups(world, setup);
    ZeroOptimizer optimizer(catalog, plan, cpu, groups.communicators(), plain_options());
    SyntheticClient client(script, setup, plan.layout.units, 0);
    body(optimizer, client);
  });
}

void expect_check_failure(const std::function<void()>& act, const std::vector<std::string>& words) {
  try {
    act();
    ADD_FAILURE() << "no CheckFailure that says " << words.front();
  } catch (const CheckFailure& failure) {
    for (const std::string& word : words) {
      EXPECT_NE(std::string(failure.what()).find(word), std::string::npos) << failure.what() << "\nlacks: " << word;
    }
  }
}

TEST(MisuseTest, ACallOutOfOrderNamesWhatWasExpectedAndWhatCame) {
  with_optimizer(2, [](ZeroOptimizer& optimizer, SyntheticClient& client) {
    expect_check_failure([&] { optimizer.enter(0, Pass::forward); }, {"enter(forward 0)", "begin()"});
    expect_check_failure([&] { optimizer.leave(0); }, {"leave(0)", "no unit is entered"});
    expect_check_failure([&] { optimizer.step(); }, {"step()", "last micro-batch"});
    expect_check_failure([&] { optimizer.begin(ProgramKind::update); }, {"begin(update)", "step()"});

    optimizer.begin(ProgramKind::train_micro_batch);
    expect_check_failure([&] { optimizer.begin(ProgramKind::evaluate); }, {"begin(evaluate)", "train"});
    expect_check_failure([&] { optimizer.step(); }, {"step()"});
    optimizer.enter(0, Pass::forward);
    expect_check_failure([&] { optimizer.enter(1, Pass::forward); }, {"enter(forward 1)", "forward 0", "leave()"});
    expect_check_failure([&] { optimizer.leave(1); }, {"leave(1)", "forward 0"});
    optimizer.leave(0);
    expect_check_failure([&] { optimizer.enter(2, Pass::forward); }, {"enter(forward 2)", "forward 1"});

    // The step was forgotten; a new one is as good as ever.
    client.run(optimizer, ProgramKind::train_micro_batch, 0, 0);
    expect_check_failure([&] { optimizer.step(); }, {"step()", "last micro-batch"});
    client.run(optimizer, ProgramKind::last_micro_batch, 0, 1);
    expect_check_failure([&] { optimizer.begin(ProgramKind::last_micro_batch); }, {"begin(", "step()"});
    EXPECT_EQ(optimizer.step().step, 1U);
    expect_check_failure([&] { optimizer.step(); }, {"step()"});
  });
}

TEST(MisuseTest, MoreMicroBatchesThanThePlanHas) {
  with_optimizer(2, [](ZeroOptimizer& optimizer, SyntheticClient& client) {
    client.run(optimizer, ProgramKind::train_micro_batch, 0, 0);
    client.run(optimizer, ProgramKind::train_micro_batch, 0, 1);
    expect_check_failure([&] { optimizer.begin(ProgramKind::train_micro_batch); }, {"begin(", "2 micro-batches"});
  });
  with_optimizer(1, [](ZeroOptimizer& optimizer, SyntheticClient&) {
    expect_check_failure([&] { optimizer.begin(ProgramKind::train_micro_batch); }, {"one micro-batch per step"});
  });
}

TEST(MisuseTest, TheWrongPassIsNamed) {
  with_optimizer(1, [](ZeroOptimizer& optimizer, SyntheticClient&) {
    optimizer.begin(ProgramKind::evaluate);
    expect_check_failure([&] { optimizer.enter(0, Pass::backward); }, {"enter(backward 0)", "forward 0"});
  });
}

// Before anything is allocated.
TEST(MisuseTest, RanksWithDifferentPlansAllHearOfIt) {
  const Catalog catalog = odd_catalog();
  CpuDevice cpu;
  std::vector<RecordingDevice::Report> reports(3);
  const auto outcomes = outcomes_of_ranks(3, [&](std::unique_ptr<Communicator> world) {
    auto setup = setup_for(3, 2, 1);
    if (world->rank() == 1) setup.prefetch = 2;
    const StepPlan plan = make_step_plan(catalog, setup);
    RecordingDevice device(cpu);
    const RankGroups groups(*world, setup);
    try {
      const ZeroOptimizer optimizer(catalog, plan, device, groups.communicators(), plain_options());
    } catch (...) {
      reports[static_cast<std::size_t>(world->rank())] = device.report(MemoryTier::device);
      throw;
    }
  });
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    ASSERT_TRUE(outcomes[rank]);
    expect_config_error([&] { std::rethrow_exception(outcomes[rank]); }, "plan", "", "expected the same on every rank");
    EXPECT_EQ(reports[rank], RecordingDevice::Report{}) << "rank " << rank;
  }
}

TEST(MisuseTest, APlanForAnotherNumberOfRanks) {
  const Catalog catalog = odd_catalog();
  const StepPlan plan = make_step_plan(catalog, setup_for(2, 0, 1));
  CpuDevice cpu;
  run_ranks(1, [&](Communicator& world) {
    expect_config_error(
        [&] {
          const ZeroOptimizer optimizer(catalog, plan, cpu, {.world = &world, .shard_group = &world}, plain_options());
        },
        "communicators", "", "2 ranks");
  });
}

TEST(MisuseTest, OptionsThatContradictThePlan) {
  const Catalog catalog = odd_catalog();
  const auto setup = setup_for(1, 0, 1);
  const StepPlan plan = make_step_plan(catalog, setup);
  CpuDevice cpu;
  run_ranks(1, [&](Communicator& world) {
    const RankGroups groups(world, setup);
    const auto expect = [&](ZeroOptions options, const std::string& source, const std::string& key,
                            const std::string& problem) {
      expect_config_error(
          [&] { const ZeroOptimizer optimizer(catalog, plan, cpu, groups.communicators(), std::move(options)); },
          source, key, problem);
    };
    ZeroOptions options;
    expect(options, "options", "initial_values", "function");
    options = plain_options();
    options.groups.clear();
    expect(options, "options", "groups", "one group or more");
    options.groups.resize(kMostGroups + 1);
    expect(options, "options", "groups", "7 are more than 6");
    options.groups = {{.match = "layers.*"}};
    expect(options, "parameter groups", "embed.weight", "belongs to no group");
    options = plain_options();
    options.loss_scaling.initial = 0;
    expect(options, "loss scale", "initial", "positive");
  });
}

// A rank whose client gives up in the middle of a step, at every stage: the others get an error within the deadline.
TEST(MisuseTest, ARankThatDiesIsACommunicationErrorOnTheOthers) {
  const Catalog catalog = odd_catalog();
  Script script;
  script.micro_batches = {1, 1, 1};
  for (const int stage : {0, 1, 2, 3}) {
    const auto setup = setup_for(3, stage, 1);
    const StepPlan plan = make_step_plan(catalog, setup);
    CpuDevice cpu;
    const auto outcomes =
        outcomes_of_ranks(3,
                          [&](std::unique_ptr<Communicator> world) {
                            const RankGroups groups(*world, setup);
                            ZeroOptimizer optimizer(catalog, plan, cpu, groups.communicators(), plain_options());
                            SyntheticClient client(script, setup, plan.layout.units, world->rank());
                            client.run_step(optimizer, 0);
                            if (world->rank() == 1) {
                              optimizer.begin(ProgramKind::last_micro_batch);
                              optimizer.enter(0, Pass::forward);
                              return;
                            }
                            client.run_step(optimizer, 1);
                          },
                          {.deadline = 30s});
    EXPECT_EQ(message_of(outcomes[1]), "");
    for (const std::size_t rank : {0U, 2U}) {
      ASSERT_TRUE(outcomes[rank]);
      EXPECT_THROW(std::rethrow_exception(outcomes[rank]), CommunicationError) << "stage " << stage;
    }
  }
}

// Wraps a rank's communicator and device in random delays that are the rank's own.
class SlowDevice final : public ForwardingDevice {
 public:
  SlowDevice(Device& inner, std::uint64_t seed)
      : ForwardingDevice(inner), delay_(seed, 200us), delaying_(inner, delay_) {}
  std::unique_ptr<Stream> make_stream() override { return delaying_.make_stream(); }

 private:
  RandomDelay delay_;
  DelayingDevice delaying_;
};

TEST(MisuseTest, RandomDelaysChangeNoBit) {
  const Catalog catalog = odd_catalog();
  Script script;
  script.micro_batches = {2, 1, 2};
  for (const std::uint64_t replicate : {1U, 2U}) {
    for (const int stage : {0, 1, 2, 3}) {
      SCOPED_TRACE(fmt::format("stage {} replicas {}", stage, replicate));
      auto setup = setup_for(4, stage, 2);
      setup.replicate = replicate;
      setup.prefetch = 2;
      std::vector<std::unique_ptr<RandomDelay>> delays;
      for (std::uint64_t rank = 0; rank < 4; ++rank) delays.push_back(std::make_unique<RandomDelay>(rank + 7, 300us));
      const Adaptors adaptors{
          .device = [](Device& inner, int rank) -> std::unique_ptr<Device> {
            return std::make_unique<SlowDevice>(inner, static_cast<std::uint64_t>(rank) + 1);
          },
          .communicator = [&](std::unique_ptr<Communicator> inner) -> std::unique_ptr<Communicator> {
            RandomDelay& delay = *delays[static_cast<std::size_t>(inner->rank())];
            return std::make_unique<DelayingCommunicator>(std::move(inner), delay);
          }};
      expect_run(catalog, setup, plain_options(), script, run_reference(catalog, setup, plain_options(), script),
                 adaptors);
    }
  }
}

// A plan that has no staging, for ranks that cannot do without.
TEST(Misuse, ADirectPlanAmongRanksThatExchangeCopies) {
  const Catalog catalog = odd_catalog();
  const auto construct = [&](Transport transport, std::uint64_t world) {
    auto setup = setup_for(world, 2, 1);
    setup.transport = transport;
    const StepPlan plan = make_step_plan(catalog, setup);
    const int size = static_cast<int>(world);
    const auto body = [&](const std::unique_ptr<Communicator>& communicator) {
      CpuDevice device;
      const RankGroups groups(*communicator, setup);
      const ZeroOptimizer optimizer(catalog, plan, device, groups.communicators(), plain_options());
    };
    std::vector<std::string> messages;
    for (const auto& outcome : outcomes_of_ranks(make_staged_communicators(size, 1min), body)) {
      messages.push_back(message_of(outcome));
    }
    return messages;
  };
  for (const std::string& message : construct(Transport::direct, 2)) {
    EXPECT_NE(message.find("--transport: direct with canonical reductions: expected staged"), std::string::npos)
        << message;
  }
  for (const std::string& message : construct(Transport::staged, 2)) EXPECT_EQ(message, "");
  for (const std::string& message : construct(Transport::direct, 1)) EXPECT_EQ(message, "");  // nothing is exchanged
}

}  // namespace
}  // namespace shardplan::test
