// Reductions in a vendor's order (`fast`): which communicators and plans go together, and what the tolerance is.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/cpu_device.h"
#include "runtime/interposed_communicator.h"
#include "runtime/recording_device.h"
#include "tests/shard/training_run.h"
#include "tests/support/run_ranks.h"
#include "tests/support/thread_exchange.h"

namespace shardplan::test {
namespace {

constexpr int kRanks = 4;

// As NCCL's in fast mode: no staging, and sums in an order of its own, here of pairs.
class VendorCommunicator final : public InterposedCommunicator {
 public:
  explicit VendorCommunicator(std::unique_ptr<Communicator> inner) : InterposedCommunicator(std::move(inner)) {}
  bool reads_peers() const override { return false; }
  bool keeps_tree() const override { return false; }
  void reduce_scatter(const ReduceScatter& call, Stream& stream) override {
    EXPECT_EQ(call.staging_bytes, 0U);
    ReduceScatter pairs = call;
    pairs.group_size = 2;
    InterposedCommunicator::reduce_scatter(pairs, stream);
  }

 private:
  void before(const char* /*operation*/) override {}
  std::unique_ptr<Communicator> wrap(std::unique_ptr<Communicator> inner) const override {
    return std::make_unique<VendorCommunicator>(std::move(inner));
  }
};

Setup setup_for(int stage, Transport transport, Reduction reduction) {
  Setup setup;
  setup.policy = policy_named("fp32");
  setup.optimizer = OptimizerKind::sgd;
  setup.world_size = kRanks;
  setup.stage = stage;
  setup.transport = transport;
  setup.reduction = reduction;
  return setup;
}

ZeroOptions options() {
  ZeroOptions options;
  options.groups = {{.match = "*", .values = {.learning_rate = 0.1, .weight_decay = 0.0}}};
  options.initial_values = synthetic_values;
  return options;
}

std::vector<std::unique_ptr<Communicator>> vendor_communicators() {
  auto communicators = make_local_communicators(kRanks);
  for (auto& each : communicators) each = std::make_unique<VendorCommunicator>(std::move(each));
  return communicators;
}

// What each rank says when it constructs an optimizer.
std::vector<std::string> refusals(std::vector<std::unique_ptr<Communicator>> communicators, const Setup& setup) {
  const Catalog catalog = odd_catalog();
  const StepPlan plan = make_step_plan(catalog, setup);
  std::vector<std::string> messages;
  for (const auto& outcome : outcomes_of_ranks(std::move(communicators), [&](const auto& world) {
         CpuDevice device;
         const RankGroups groups(*world, setup);
         const ZeroOptimizer optimizer(catalog, plan, device, groups.communicators(), options());
       })) {
    messages.push_back(message_of(outcome));
  }
  return messages;
}

TEST(FastReduction, AVendorsOrderNeedsAPlanThatSaysSo) {
  for (const std::string& message :
       refusals(vendor_communicators(), setup_for(2, Transport::staged, Reduction::canonical))) {
    EXPECT_EQ(message, "--reduction: canonical: expected fast, for these ranks' sums are in the vendor's order");
  }
  for (const std::string& message :
       refusals(vendor_communicators(), setup_for(2, Transport::direct, Reduction::fast))) {
    EXPECT_NE(message.find("--transport: direct with fast reductions: expected staged and fast"), std::string::npos)
        << message;
  }
  // A plan without staging is nothing for ranks that exchange copies and sum in the tree's order.
  for (const std::string& message : refusals(make_staged_communicators(kRanks, std::chrono::minutes{1}),
                                             setup_for(2, Transport::staged, Reduction::fast))) {
    EXPECT_NE(message.find("--transport: staged with fast reductions: expected staged and canonical"),
              std::string::npos)
        << message;
  }
  // Ranks that read each other's memory sum in the tree's order, which is one of those that `fast` allows.
  for (const std::string& message :
       refusals(make_local_communicators(kRanks), setup_for(2, Transport::direct, Reduction::fast))) {
    EXPECT_EQ(message, "");
  }
}

class FastTraining : public ::testing::TestWithParam<int> {};

TEST_P(FastTraining, IsWithinTheToleranceAndInThePlansBytes) {
  const Catalog catalog = odd_catalog();
  const auto setup = setup_for(GetParam(), Transport::staged, Reduction::fast);
  const StepPlan plan = make_step_plan(catalog, setup);
  const StepPlan canonical = make_step_plan(catalog, setup_for(GetParam(), Transport::staged, Reduction::canonical));
  EXPECT_LT(plan.device.bytes, canonical.device.bytes) << "there is no staging";
  const Script script{.seed = 5, .micro_batches = {1, 1, 1}, .poisons = {}, .silent_unit = 3};
  const Trained expected = run_reference(catalog, setup, options(), script);
  // docs/numerics.md: two orders of N terms differ by 2 (N - 1) u times the sum of their magnitudes, here below 1/2 each;
  // and the parameter, below 2, is rounded once more, in each of three steps.
  constexpr double u = 0x1p-24;
  constexpr double tolerance = 3 * (0.1 * 2 * (kRanks - 1) * u * 0.5 + 2 * 2 * u);
  std::size_t others = 0;
  for (const auto& outcome : outcomes_of_ranks(vendor_communicators(), [&](const auto& world) {
         CpuDevice cpu;
         RecordingDevice device(cpu);
         const RankGroups groups(*world, setup);
         ZeroOptimizer optimizer(catalog, plan, device, groups.communicators(), options());
         SyntheticClient client(script, setup, plan.layout.units, world->rank());
         for (std::uint64_t step = 0; step < script.micro_batches.size(); ++step) client.run_step(optimizer, step);
         EXPECT_EQ(device.report(MemoryTier::device).held, plan.device.bytes);
         EXPECT_EQ(device.report(MemoryTier::device).live_peak, plan.device.live_peak);
         const auto parameters = parameters_of(optimizer);
         if (world->rank() != 0) return;
         ASSERT_EQ(parameters.size(), expected.parameters.size());
         for (std::size_t t = 0; t < parameters.size(); ++t) {
           for (std::size_t i = 0; i < parameters[t].size(); ++i) {
             ASSERT_LE(std::abs(expected.parameters[t][i]), 2.0F) << "the tolerance assumes it";
             ASSERT_NEAR(parameters[t][i], expected.parameters[t][i], tolerance) << "tensor " << t << ", element " << i;
             others += parameters[t][i] != expected.parameters[t][i] ? 1U : 0U;
           }
         }
       })) {
    EXPECT_EQ(message_of(outcome), "");
  }
  EXPECT_GT(others, 0U) << "another order has other bits, or this test shows nothing";
}

INSTANTIATE_TEST_SUITE_P(Stages, FastTraining, ::testing::Values(0, 1, 2, 3));

}  // namespace
}  // namespace shardplan::test
