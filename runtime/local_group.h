// How the threads of a LocalCommunicator meet. Internal to runtime/.
//
// A collective is: publish a call, meet, compare the calls, work (read peers' arenas, write the own one),
// meet again.
//
// Invariants:
//   1. What a rank has published stays until it has met its peers for the second time; after a failure, for
//   good.
//   2. Nobody leaves a collective, by return or by exception, while a member works: whatever a rank does
//   after a
//      collective, even one that failed, races with no reader of its arena. Working never blocks.
//   3. A member that has left never arrives again: whoever waits for it fails.
//   4. Whether a meeting took place is looked at after whether something failed: what has been reached
//   counts.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/collective_call.h"
#include "runtime/local_communicator.h"

namespace shardplan {

class LocalGroup;

// What all communicators of a family share: the first failure.
class LocalWorld {
 public:
  LocalWorld(int ranks, const LocalOptions& options) : ranks_(ranks), options_(options) {}

  int ranks() const { return ranks_; }
  const LocalOptions& options() const { return options_; }
  std::uint64_t next_arena_id() { return next_arena_id_.fetch_add(1); }

  void enroll(const std::shared_ptr<LocalGroup>& group);
  // The first failure stays; every group is woken.
  void poison(int world_rank, const std::string& operation, const std::string& problem);
  bool poisoned() const noexcept { return poisoned_.load(); }
  void throw_if_poisoned() const {
    if (poisoned()) throw_failure();
  }
  [[noreturn]] void throw_failure() const;

 private:
  const int ranks_;
  const LocalOptions options_;
  std::atomic<std::uint64_t> next_arena_id_{0};
  std::atomic<bool> poisoned_{false};
  mutable std::mutex mutex_;  // of what follows; taken before a group's
  int failed_rank_ = -1;
  std::string failed_operation_;
  std::string problem_;
  std::vector<std::weak_ptr<LocalGroup>> groups_;
};

class LocalGroup {
 public:
  LocalGroup(std::shared_ptr<LocalWorld> world, std::vector<int> world_ranks);

  const std::shared_ptr<LocalWorld>& world() const { return world_; }
  int size() const { return static_cast<int>(members_.size()); }
  int world_rank(int member) const { return world_ranks_[static_cast<std::size_t>(member)]; }
  int member_of(int world_rank) const;  // which of the members; it is one

  // One collective. `work()` runs between the meetings: it may read every member's call and arenas, must not
  // block, and calls keep_going() between blocks. Any exception poisons the family before it leaves here.
  template <typename Work>
  void collective(int member, const CollectiveCall& call, Work&& work) {
    world_->throw_if_poisoned();
    try {
      publish(member, call);
      meet(member, call.operation);
      {
        const Working working(*this);
        compare_calls();
        work();
      }
      meet(member, call.operation);
    } catch (const std::exception& error) {
      fail(member, call.operation, error.what());
      throw;
    }
  }
  const CollectiveCall& call_of(int member) const { return members_[static_cast<std::size_t>(member)].call; }
  void keep_going() const { world_->throw_if_poisoned(); }

  void leave(int member) noexcept;
  void wake() noexcept;

 private:
  struct alignas(128) Member {
    CollectiveCall call;
    std::atomic<std::uint64_t> arrivals{0};
  };
  class Working {
   public:
    explicit Working(LocalGroup& group);
    ~Working() { group_.working_.fetch_sub(1); }
    Working(const Working&) = delete;
    Working& operator=(const Working&) = delete;

   private:
    LocalGroup& group_;
  };

  void publish(int member, const CollectiveCall& call) { members_[static_cast<std::size_t>(member)].call = call; }
  void meet(int member, const char* operation);
  bool has_met(std::uint64_t meeting, const char* operation) const;
  void sleep_until(std::chrono::steady_clock::time_point time, std::uint64_t meeting);
  int missing_member(int member) const;
  void compare_calls() const;
  void fail(int member, const char* operation, const char* problem);

  const std::shared_ptr<LocalWorld> world_;
  const std::vector<int> world_ranks_;
  std::vector<Member> members_;
  alignas(128) std::atomic<int> expected_;  // arrivals until the current meeting is complete
  std::atomic<std::uint64_t> meetings_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<int> working_{0};
  std::atomic<int> departed_{-1};  // the first member that left
  std::mutex mutex_;               // only for sleeping
  std::condition_variable wake_up_;
};

}  // namespace shardplan
