// The kinds of ranks and of devices that need nothing but this machine.
#include "runtime/cpu_device.h"
#include "runtime/virtual/virtual_world.h"
#include "tests/runtime/communicator_conformance.h"
#include "tests/runtime/device_conformance.h"
#include "tests/support/run_processes.h"
#include "tests/support/run_ranks.h"
#include "tests/support/thread_exchange.h"

namespace shardplan::test {
namespace {

std::map<int, Outcome> numbered(const std::vector<Outcome>& outcomes) {
  std::map<int, Outcome> by_rank;
  for (const Outcome& outcome : outcomes) by_rank.emplace(static_cast<int>(by_rank.size()), outcome);
  return by_rank;
}

// Threads that spin before they sleep, or sleep at once.
class LocalHarness final : public RankHarness {
 public:
  explicit LocalHarness(bool spin) : spin_(spin) {}
  std::string name() const override { return spin_ ? "LocalSpinning" : "LocalSleeping"; }
  std::map<int, Outcome> run(int ranks, std::chrono::milliseconds deadline, const Body& body) const override {
    CpuDevice device;
    std::vector<Outcome> outcomes;
    for (const auto& exception : outcomes_of_ranks(
             ranks, [&](const std::unique_ptr<Communicator>& communicator) { body(*communicator, device); },
             {.deadline = deadline, .hardware_threads = spin_ ? 64U : 0U})) {
      outcomes.push_back(outcome_of(exception));
    }
    return numbered(outcomes);
  }

 private:
  bool spin_;
};

class SharedHarness final : public RankHarness {
 public:
  std::string name() const override { return "Shared"; }
  std::vector<int> worlds() const override { return {1, 2, 3, 4}; }
  std::map<int, Outcome> run(int ranks, std::chrono::milliseconds deadline, const Body& body) const override {
    return numbered(run_shared_ranks(ranks,
                                     [&](const std::unique_ptr<Communicator>& communicator) {
                                       CpuDevice device(HostPages::shareable);
                                       body(*communicator, device);
                                     },
                                     {.deadline = deadline}));
  }
};

// Threads that act as if they could not read each other's memory.
class StagedHarness final : public RankHarness {
 public:
  std::string name() const override { return "Staged"; }
  std::map<int, Outcome> run(int ranks, std::chrono::milliseconds deadline, const Body& body) const override {
    CpuDevice device;
    std::vector<Outcome> outcomes;
    for (const auto& exception :
         outcomes_of_ranks(make_staged_communicators(ranks, deadline),
                           [&](const std::unique_ptr<Communicator>& communicator) { body(*communicator, device); })) {
      outcomes.push_back(outcome_of(exception));
    }
    return numbered(outcomes);
  }
};

class FreeCosts final : public Costs {
 public:
  double memory_seconds(Bytes) const override { return 0; }
  double host_link_seconds(Bytes, Bytes) const override { return 0; }
  CollectivePrice collective(VirtualCollective, Bytes, const GroupShape&) const override { return {}; }
};

class VirtualHarness final : public RankHarness {
 public:
  std::string name() const override { return "Virtual"; }
  bool holds_values() const override { return false; }
  bool real_time() const override { return false; }
  bool allocates_nothing() const override { return false; }
  std::map<int, Outcome> run(int ranks, std::chrono::milliseconds deadline, const Body& body) const override {
    const FreeCosts costs;
    VirtualWorld world({.ranks = ranks, .costs = &costs, .deadline = deadline});
    std::vector<Outcome> outcomes;
    for (const VirtualOutcome& outcome :
         world.run([&](VirtualRank& rank) { body(rank.communicator(), rank.device()); })) {
      outcomes.push_back(outcome_of(outcome.error));
    }
    return numbered(outcomes);
  }
};

DeviceUnderTest cpu_device(const std::string& name, HostPages pages) {
  return {.name = name,
          .run =
              [pages](const std::function<void(Device&)>& body) {
                CpuDevice device(pages);
                body(device);
              },
          .shareable = pages == HostPages::shareable};
}

DeviceUnderTest virtual_device() {
  const auto run = [](const std::function<void(Device&)>& body) {
    const FreeCosts costs;
    VirtualWorld world({.ranks = 1, .capacity = 64_GiB, .costs = &costs});
    for (const VirtualOutcome& outcome : world.run([&](VirtualRank& rank) { body(rank.device()); })) {
      if (outcome.error) std::rethrow_exception(outcome.error);
    }
  };
  return {.name = "Virtual", .run = run, .holds_values = false};
}

}  // namespace

std::vector<DeviceUnderTest> devices_under_test() {
  return {cpu_device("Cpu", HostPages::own), cpu_device("CpuShareable", HostPages::shareable), virtual_device()};
}

std::vector<std::shared_ptr<RankHarness>> harnesses_under_test() {
  return {std::make_shared<LocalHarness>(true), std::make_shared<LocalHarness>(false),
          std::make_shared<SharedHarness>(), std::make_shared<StagedHarness>(), std::make_shared<VirtualHarness>()};
}

}  // namespace shardplan::test
