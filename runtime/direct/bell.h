// Where a rank sleeps until another one rings, among threads and among processes: a futex. Internal to runtime/.
//
// A sleeper counts itself and then looks at what it waits for; whoever changes that looks at the count afterwards. All of
// it is sequentially consistent, so one of the two sees the other. Lies in zeroed memory that all have in common; a process
// that is killed while it sleeps leaves a count that only costs its peers a call.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace shardplan {

class Bell {
 public:
  void ring() noexcept {
    if (sleepers_.load() == 0) return;
    rings_.fetch_add(1);
    wake();
  }

  // Returns when done() is true, or the bell has rung, or `time` has passed, or for no reason.
  template <typename Done>
  void sleep(std::chrono::nanoseconds time, Done done) {
    sleepers_.fetch_add(1);
    const std::uint32_t rings = rings_.load();
    if (!done()) wait(rings, time);
    sleepers_.fetch_sub(1);
  }

 private:
  void wait(std::uint32_t rings, std::chrono::nanoseconds time) noexcept;
  void wake() noexcept;

  std::atomic<std::uint32_t> rings_{0};
  std::atomic<std::uint32_t> sleepers_{0};
  static_assert(std::atomic<std::uint32_t>::is_always_lock_free && sizeof(std::atomic<std::uint32_t>) == 4);
};

}  // namespace shardplan
