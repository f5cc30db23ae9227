// How the ranks of a group meet. Internal to runtime/.
//
// A collective is: publish a call, meet, compare the calls, work (read peers' memory, write the own one), meet again. Ranks
// meet by counting: each counts its own arrivals, and a meeting has taken place when every count has reached its number.
//
// Invariants:
//   1. What a rank has published stays until it has met its peers for the second time; after a failure, for good.
//   2. Nobody leaves a collective, by return or by exception, while a member works: whatever a rank does after a
//      collective, even one that failed, races with no reader of its arena. Working never blocks. (Of a process that has
//      been killed nothing is waited for, and for one that has been stopped no longer than the deadline.)
//   3. A member that has left never arrives again: whoever waits for it fails.
//   4. Whether a meeting took place is looked at after whether something failed: what has been reached counts.
//   5. Common memory is as direct_world.h says: a member writes its own part alone.
#pragma once

#include <poll.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/direct/direct_world.h"

namespace shardplan {

// One rank's view of a group.
class DirectGroup {
 public:
  // Room in which a rank's record waits for the others to copy it; longer ones pass in parts.
  static constexpr std::size_t kRecordRoom = (16_KiB).count();
  // Of the common memory of a group.
  static Bytes common_bytes(int size);

  DirectGroup(std::shared_ptr<DirectWorld> world, std::shared_ptr<std::byte> common, std::vector<int> world_ranks,
              int member);
  ~DirectGroup();
  DirectGroup(const DirectGroup&) = delete;
  DirectGroup& operator=(const DirectGroup&) = delete;

  const std::shared_ptr<DirectWorld>& world() const { return world_; }
  int size() const { return static_cast<int>(world_ranks_.size()); }
  int member() const { return member_; }
  const std::vector<int>& world_ranks() const { return world_ranks_; }
  int world_rank(int member) const { return world_ranks_[static_cast<std::size_t>(member)]; }

  // What this rank's next collective publishes beside the call itself.
  Offer& own_offer() { return at(member_).offer; }
  std::span<std::byte> own_record() { return at(member_).room; }

  // One collective. `place` is the offset of this rank's own input. `work()` runs between the meetings: it may read what
  // every member has published and their arenas, must not block, and calls keep_going() between blocks. Any exception
  // poisons the family before it leaves here.
  template <typename Work>
  void collective(const CollectiveCall& call, std::uint64_t place, Work&& work) {
    world_->throw_if_poisoned();
    try {
      write(call, at(member_).call);
      at(member_).call.place = place;
      meet(call.operation);
      {
        const Working working(*this);
        compare_calls();
        work();
      }
      meet(call.operation);
    } catch (const std::exception& error) {
      fail(call.operation, error.what());
      throw;
    }
  }
  void keep_going() const { world_->throw_if_poisoned(); }
  // Of processes: whether the member's has ended.
  bool has_died(int member);

  // What a member has published, for work().
  const CallRecord& call_of(int member) const { return at(member).call; }
  const Offer& offer_of(int member) const { return at(member).offer; }
  std::span<const std::byte> record_of(int member) const { return at(member).room; }

 private:
  using Clock = std::chrono::steady_clock;

  struct Member {
    alignas(128) std::atomic<std::uint64_t> arrivals;
    std::atomic<bool> left;
    std::atomic<bool> working;
    alignas(128) CallRecord call;
    Offer offer;
    alignas(128) std::byte room[kRecordRoom];
  };
  class Working {
   public:
    explicit Working(DirectGroup& group);
    ~Working() { group_.at(group_.member_).working.store(false); }
    Working(const Working&) = delete;
    Working& operator=(const Working&) = delete;

   private:
    DirectGroup& group_;
  };

  Member& at(int member) const { return members_[member]; }
  void meet(const char* operation);
  bool has_met(const char* operation);
  bool all_arrived();
  int somebody_who_left() const;
  int somebody_who_died();
  void fail(const char* operation, const char* problem) noexcept;
  void wait_for_workers() noexcept;
  void compare_calls() const;
  void ring() const noexcept;

  const std::shared_ptr<DirectWorld> world_;
  const std::shared_ptr<std::byte> common_;
  Member* const members_;
  const std::vector<int> world_ranks_;
  const int member_;
  std::uint64_t meetings_ = 0;  // that this rank has come to
  int arrived_ = 0;             // so many of the first members are known to have come to the last of them
  std::vector<pollfd> lives_;   // of the members' processes; none among threads
};

}  // namespace shardplan
