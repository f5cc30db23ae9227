// Whole steps on a device whose work is late and whose memory the host cannot touch: the reference's bits all the same.
#include "tests/support/lazy_device.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <string_view>
#include <tuple>

#include "planner/offload.h"
#include "tests/support/device_client.h"
#include "tests/support/run_ranks.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/thread_exchange.h"

namespace shardplan::test {
namespace {

TEST(LazyDevice, RunsNothingBeforeItMust) {
  LazyDevice device;
  const auto memory = device.allocate({.bytes = 8_B});
  std::array<std::byte, 8> host{std::byte{7}};
  const auto first = device.make_stream();
  const auto second = device.make_stream();
  const auto event = device.make_event();
  first->copy(memory->data(), host.data(), 8_B);
  first->record(*event);
  second->wait(*event);
  host[0] = std::byte{9};  // too early: a stream has not read it yet
  std::array<std::byte, 8> seen{};
  second->copy(seen.data(), memory->data(), 8_B);
  EXPECT_EQ(seen[0], std::byte{0});
  second->synchronize();
  EXPECT_EQ(seen[0], std::byte{9});
}

using Case = std::tuple<int, Transport>;  // stage
class OnLazyDevice : public ::testing::TestWithParam<Case> {};

// The optimizer of one plan on four ranks, each with a lazy device of its own.
void expect_outcome(const Catalog& catalog, const StepPlan& plan, const ZeroOptions& options, const Script& script,
                    const Trained& expected) {
  const bool staged = plan.setup.transport == Transport::staged;
  const auto outcomes =
      outcomes_of_ranks(staged ? make_staged_communicators(4, std::chrono::seconds(60)) : make_local_communicators(4),
                        [&](const std::unique_ptr<Communicator>& inner) {
                          LazyDevice device;
                          const auto world = make_lazy_communicator(*inner, device);
                          const RankGroups groups(*world, plan.setup);
                          ZeroOptimizer optimizer(catalog, plan, device, groups.communicators(), options);
                          EXPECT_EQ(difference(run_on_device(optimizer, script, plan, inner->rank()), expected), "");
                        });
  for (const auto& outcome : outcomes) EXPECT_EQ(message_of(outcome), "");
}

TEST_P(OnLazyDevice, EveryStageEqualsTheReference) {
  const Catalog catalog = odd_catalog();
  for (const char* precision : {"fp32", "bf16-mixed", "fp16-mixed"}) {
    shardplan::Setup setup;
    setup.policy = policy_named(precision);
    setup.world_size = 4;
    setup.replicate = std::string_view(precision) == "bf16-mixed" ? 2 : 1;
    std::tie(setup.stage, setup.transport) = GetParam();
    setup.accumulation = 2;
    setup.cadence = Cadence::micro_batch;
    setup.ema = true;
    const Script script{.seed = 11, .micro_batches = {2, 1, 2}, .poisons = {}, .silent_unit = 3};
    ZeroOptions options;
    options.groups = {{.match = "*bias"}, {.match = "*", .values = {.learning_rate = 1e-2}}};
    options.clip_norm = 0.5;
    options.initial_values = synthetic_values;
    const Trained expected = run_reference(catalog, setup, options, script);
    options.kernels = &lazy_kernels();
    for (setup.prefetch = 0; setup.prefetch < 3; ++setup.prefetch) {
      SCOPED_TRACE(fmt::format("{}, prefetch {}", precision, setup.prefetch));
      expect_outcome(catalog, make_step_plan(catalog, setup), options, script, expected);
    }
  }
}

// What streams have not done yet must not be written to the file, and what they still read not be overwritten from it.
class OffloadOnLazyDevice : public ::testing::TestWithParam<std::tuple<const char*, int>> {};  // placement, stage

TEST_P(OffloadOnLazyDevice, EqualsTheReference) {
  const auto& [placement, stage] = GetParam();
  const Catalog catalog = odd_catalog();
  for (const char* precision : {"bf16-mixed", "bf16"}) {
    shardplan::Setup setup;
    setup.policy = policy_named(precision);
    setup.world_size = 4;
    setup.stage = stage;
    setup.accumulation = 2;
    setup.cadence = Cadence::micro_batch;
    const Script script{.seed = 11, .micro_batches = {2, 1, 2}, .poisons = {}, .silent_unit = 3};
    ZeroOptions options;
    options.groups = {{.match = "*", .values = {.learning_rate = 1e-2}}};
    options.clip_norm = 0.5;
    options.initial_values = synthetic_values;
    const Trained expected = run_reference(catalog, setup, options, script);
    options.kernels = &lazy_kernels();
    setup.offload = parse_offload(placement).offload;
    setup.offload.block_elements = 2048;
    const test_support::TemporaryFolder folder;
    options.offload.folder = folder.path();
    SCOPED_TRACE(precision);
    expect_outcome(catalog, make_step_plan(catalog, setup), options, script, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Placements, OffloadOnLazyDevice,
                         ::testing::Combine(::testing::Values("optimizer=cpu", "gradients=cpu", "parameters=cpu",
                                                              "optimizer=file", "gradients=file", "parameters=file",
                                                              "optimizer=file,gradients=file,parameters=file"),
                                            ::testing::Values(0, 1, 2, 3)));

INSTANTIATE_TEST_SUITE_P(StagesAndTransports, OnLazyDevice,
                         ::testing::Combine(::testing::Values(0, 1, 2, 3),
                                            ::testing::Values(Transport::direct, Transport::staged)));

}  // namespace
}  // namespace shardplan::test
