#include "runtime/local_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kSpin{50};
constexpr int kLooksPerYield = 64;

}  // namespace

void LocalWorld::enroll(const std::shared_ptr<LocalGroup>& group) {
  const std::lock_guard lock(mutex_);
  std::erase_if(groups_, [](const auto& known) { return known.expired(); });
  groups_.push_back(group);
}

void LocalWorld::poison(int world_rank, const std::string& operation, const std::string& problem) {
  std::vector<std::shared_ptr<LocalGroup>> groups;  // outlives the lock: the last owner of a group may be here
  const std::lock_guard lock(mutex_);
  if (poisoned_.load()) return;
  failed_rank_ = world_rank;
  failed_operation_ = operation;
  problem_ = problem;
  poisoned_.store(true);
  for (const auto& known : groups_) {
    if (auto group = known.lock()) groups.push_back(std::move(group));
  }
  for (const auto& group : groups) group->wake();
}

void LocalWorld::throw_failure() const {
  const std::lock_guard lock(mutex_);
  throw CommunicationError(failed_rank_, failed_operation_, options_.deadline, problem_);
}

LocalGroup::LocalGroup(std::shared_ptr<LocalWorld> world, std::vector<int> world_ranks)
    : world_(std::move(world)),
      world_ranks_(std::move(world_ranks)),
      members_(world_ranks_.size()),
      expected_(static_cast<int>(world_ranks_.size())) {}

int LocalGroup::member_of(int world_rank) const {
  return static_cast<int>(std::find(world_ranks_.begin(), world_ranks_.end(), world_rank) - world_ranks_.begin());
}

// The failing side poisons and then looks at working_; this side counts itself and then looks for poison.
// Both are sequentially consistent, so that one of the two sees the other.
LocalGroup::Working::Working(LocalGroup& group) : group_(group) {
  group_.working_.fetch_add(1);
  if (group_.world_->poisoned()) {
    group_.working_.fetch_sub(1);
    group_.world_->throw_failure();
  }
}

void LocalGroup::fail(int member, const char* operation, const char* problem) {
  world_->poison(world_rank(member), operation, problem);
  while (working_.load() != 0) std::this_thread::yield();
}

void LocalGroup::leave(int member) noexcept {
  int nobody = -1;
  departed_.compare_exchange_strong(nobody, member);
  wake();
}

// A sleeper counts itself and then looks at what it waits for; a waker changes that and then looks at the
// count.
void LocalGroup::wake() noexcept {
  if (sleepers_.load() == 0) return;
  {
    const std::lock_guard lock(mutex_);
  }
  wake_up_.notify_all();
}

void LocalGroup::meet(int member, const char* operation) {
  const std::uint64_t meeting = meetings_.load();
  members_[static_cast<std::size_t>(member)].arrivals.fetch_add(1);
  if (expected_.fetch_sub(1) == 1) {
    expected_.store(size());
    meetings_.store(meeting + 1);
    wake();
    return;
  }
  const auto start = Clock::now();
  if (static_cast<unsigned>(world_->ranks()) <= world_->options().hardware_threads) {
    while (Clock::now() - start < kSpin) {
      for (int look = 0; look < kLooksPerYield; ++look) {
        if (has_met(meeting, operation)) return;
      }
      std::this_thread::yield();
    }
  }
  const auto end = start + world_->options().deadline;
  while (!has_met(meeting, operation)) {
    sleep_until(end, meeting);
    if (Clock::now() < end || has_met(meeting, operation)) continue;
    const int late = missing_member(member);
    if (late < 0) continue;  // the last one is just completing the meeting
    world_->poison(world_rank(late), operation, "did not arrive before the deadline");
  }
}

bool LocalGroup::has_met(std::uint64_t meeting, const char* operation) const {
  const bool poisoned = world_->poisoned();
  const int departed = departed_.load();
  if (meetings_.load() != meeting) return true;
  if (!poisoned && departed < 0) return false;
  if (!poisoned) world_->poison(world_rank(departed), operation, "has left the group");
  world_->throw_failure();
}

void LocalGroup::sleep_until(Clock::time_point time, std::uint64_t meeting) {
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1);
  wake_up_.wait_until(lock, time,
                      [&] { return meetings_.load() != meeting || departed_.load() >= 0 || world_->poisoned(); });
  sleepers_.fetch_sub(1);
}

int LocalGroup::missing_member(int member) const {
  const std::uint64_t arrivals = members_[static_cast<std::size_t>(member)].arrivals.load();
  for (int other = 0; other < size(); ++other) {
    if (members_[static_cast<std::size_t>(other)].arrivals.load() < arrivals) return other;
  }
  return -1;
}

void LocalGroup::compare_calls() const {
  for (int member = 1; member < size(); ++member) {
    const CollectiveCall& call = call_of(member);
    const std::string difference = difference_of(call, world_rank(member), call_of(0), world_rank(0));
    if (difference.empty()) continue;
    world_->poison(world_rank(member), call.operation, difference);
    world_->throw_failure();
  }
}

}  // namespace shardplan
