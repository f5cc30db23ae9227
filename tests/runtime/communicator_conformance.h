// One suite for every Communicator: what the contract in runtime/communicator.h promises, on ranks of any kind.
//
// A test program compiles communicator_conformance.cpp and defines harnesses_under_test(). A harness runs a function on N
// ranks: threads, forked processes, virtual ranks, those that a launcher has started.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/communicator.h"
#include "tests/support/outcome.h"

namespace shardplan::test {

class RankHarness {
 public:
  // What a rank is given. Its communicator is destroyed when the body has ended.
  using Body = std::function<void(Communicator& communicator, Device& device)>;

  virtual ~RankHarness() = default;
  virtual std::string name() const = 0;

  // Runs `body` on every rank of a world of its own; how each ended, of those that this process can tell.
  virtual std::map<int, Outcome> run(int ranks, std::chrono::milliseconds deadline, const Body& body) const = 0;

  // The sizes of worlds to try, in ascending order.
  virtual std::vector<int> worlds() const { return {1, 2, 3, 4, 7}; }
  // Whether device memory has bytes that the host can read and write. Where it has none, or they are elsewhere, values are
  // not looked at.
  virtual bool holds_values() const { return true; }
  // Whether a rank that sleeps is late: virtual time goes on without the host's.
  virtual bool real_time() const { return true; }
  // Whether collectives allocate nothing on the calling thread, which the contract asks of those that train.
  virtual bool allocates_nothing() const { return true; }
};

using Harness = std::shared_ptr<RankHarness>;

std::vector<Harness> harnesses_under_test();

// Those of them that a part of the suite is about. Where there is none, the part has no tests.
template <typename Suits>
std::vector<Harness> harnesses_that(const Suits& suits) {
  std::vector<Harness> harnesses = harnesses_under_test();
  std::erase_if(harnesses, [&](const Harness& harness) { return !suits(*harness); });
  return harnesses;
}

inline std::string name_of(const testing::TestParamInfo<Harness>& tested) {
  return tested.param->name();
}

inline int largest_world(const RankHarness& harness) {
  return harness.worlds().back();
}

}  // namespace shardplan::test
