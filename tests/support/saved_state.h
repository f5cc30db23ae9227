// A checkpoint in memory: the state that the ranks of a world have visited, together.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "shard/zero_optimizer.h"

namespace shardplan::test {

class SavedState {
 public:
  explicit SavedState(const Catalog& catalog);

  // From any number of threads.
  void save(ZeroOptimizer& optimizer);
  void load(ZeroOptimizer& optimizer) const;

  // What is wrong with it as the state of one world: a range that was visited twice or not at all, a dtype that
  // changes within a tensor. Empty if nothing is.
  std::string flaw() const;
  // How many tensors have the kind.
  std::size_t count(StateKind kind) const;
  std::uint64_t digest() const;

 private:
  struct Values {
    DType dtype = DType::f32;
    std::vector<std::byte> bytes;
    std::vector<std::uint8_t> visits;  // of each element
  };
  using Key = std::pair<std::uint64_t, StateKind>;

  std::vector<std::uint64_t> elements_;  // of each tensor
  std::vector<std::string> names_;
  mutable std::mutex mutex_;
  std::map<Key, Values> values_;
  StepState step_state_;
  std::string flaw_;
};

}  // namespace shardplan::test
