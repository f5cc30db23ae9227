// Ranks that take turns: one runs at a time until it blocks or ends. Internal to runtime/virtual.
//
// Those who are ready wait in a queue, in the order in which they became so; at the start, in order of rank.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

namespace shardplan {

class Turns {
 public:
  using Body = std::function<void(int rank)>;  // must not throw
  virtual ~Turns() = default;

  // Returns when all bodies have. Where nobody is ready and somebody has not ended, `stuck` is called: it must not
  // throw, and after some calls have woken somebody, for a rank cannot be abandoned halfway (a fiber would be unwound by
  // an exception that its body takes for one of its own; a thread would wait for ever).
  // Throws Error where there is no room for so many ranks; then no body has run.
  void run(int count, const Body& body, const std::function<void()>& stuck);
  // The running rank waits until it is woken.
  virtual void block(int rank) = 0;
  // A rank that waits, once. Allocates nothing.
  void wake(int rank);

 protected:
  // Starts the ranks, none of which runs before its turn; gives one of them its turn, and returns after it; true if
  // it has ended.
  virtual void start(int count, const Body& body) = 0;
  virtual bool turn(int rank) = 0;

 private:
  std::vector<int> ready_;  // a ring with room for all
  std::size_t first_ = 0;
  std::size_t waiting_ = 0;
};

std::unique_ptr<Turns> make_fiber_turns(std::size_t stack_bytes);
std::unique_ptr<Turns> make_thread_turns();

}  // namespace shardplan
