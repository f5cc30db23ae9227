#include "runtime/direct/direct_group.h"

#include <algorithm>
#include <string>
#include <thread>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {
namespace {

constexpr std::chrono::microseconds kSpin{50};
constexpr int kLooksPerYield = 64;
// How often a sleeping process looks whether its peers' processes are there.
constexpr std::chrono::milliseconds kLook{20};
constexpr std::chrono::microseconds kLookAtWork{100};

}  // namespace

Bytes DirectGroup::common_bytes(int size) {
  return Bytes{checked_multiply(sizeof(Member), static_cast<std::uint64_t>(size))};
}

DirectGroup::DirectGroup(std::shared_ptr<DirectWorld> world, std::shared_ptr<std::byte> common,
                         std::vector<int> world_ranks, int member)
    : world_(std::move(world)),
      common_(std::move(common)),
      members_(reinterpret_cast<Member*>(common_.get())),
      world_ranks_(std::move(world_ranks)),
      member_(member) {
  if (!world_->neighbours().processes()) return;
  for (const int rank : world_ranks_) {
    lives_.push_back(
        {.fd = rank == world_->rank() ? -1 : world_->neighbours().life_of(rank), .events = POLLIN, .revents = 0});
  }
}

DirectGroup::~DirectGroup() {
  at(member_).left.store(true);
  ring();
}

void DirectGroup::ring() const noexcept {
  for (const int rank : world_ranks_) world_->bell(rank).ring();
}

// The failing side poisons and then looks at who works; this side says that it works and then looks for poison. Both are
// sequentially consistent, so that one of the two sees the other.
DirectGroup::Working::Working(DirectGroup& group) : group_(group) {
  std::atomic<bool>& working = group_.at(group_.member_).working;
  working.store(true);
  if (!group_.world_->poisoned()) return;
  working.store(false);
  group_.world_->throw_failure();
}

void DirectGroup::fail(const char* operation, const char* problem) noexcept {
  world_->poison(world_->rank(), operation, problem);
  wait_for_workers();
}

void DirectGroup::wait_for_workers() noexcept {
  if (lives_.empty()) {
    for (int member = 0; member < size(); ++member) {
      while (at(member).working.load()) std::this_thread::yield();
    }
    return;
  }
  const auto end = Clock::now() + world_->options().deadline;
  for (int member = 0; member < size(); ++member) {
    while (at(member).working.load() && !has_died(member) && Clock::now() < end)
      std::this_thread::sleep_for(kLookAtWork);
  }
}

void DirectGroup::meet(const char* operation) {
  arrived_ = 0;
  at(member_).arrivals.store(++meetings_);
  if (all_arrived()) {
    ring();
    return;
  }
  const auto start = Clock::now();
  while (world_->options().spin && Clock::now() - start < kSpin) {
    for (int look = 0; look < kLooksPerYield; ++look) {
      if (has_met(operation)) return;
    }
    std::this_thread::yield();
  }
  const auto end = start + world_->options().deadline;
  const auto something_to_see = [&] { return all_arrived() || world_->poisoned() || somebody_who_left() >= 0; };
  while (!has_met(operation)) {
    const std::chrono::nanoseconds left = end - Clock::now();
    world_->bell(world_->rank())
        .sleep(lives_.empty() ? left : std::min<std::chrono::nanoseconds>(left, kLook), something_to_see);
    const int dead = somebody_who_died();
    if (all_arrived()) return;
    if (dead >= 0) {
      const bool has_left = at(dead).left.load();  // before it ended
      world_->poison(world_rank(dead), operation, has_left ? "has left the group" : "has died: its process is gone");
    } else if (Clock::now() >= end) {
      world_->poison(world_rank(arrived_), operation, "did not arrive before the deadline");
    }
  }
}

bool DirectGroup::has_met(const char* operation) {
  const bool poisoned = world_->poisoned();
  const int left = somebody_who_left();
  if (all_arrived()) return true;
  if (!poisoned && left < 0) return false;
  if (!poisoned) world_->poison(world_rank(left), operation, "has left the group");
  world_->throw_failure();
}

// Counts only grow, so those who have arrived need not be looked at again.
bool DirectGroup::all_arrived() {
  while (arrived_ < size() && at(arrived_).arrivals.load() >= meetings_) ++arrived_;
  return arrived_ == size();
}

int DirectGroup::somebody_who_left() const {
  for (int member = 0; member < size(); ++member) {
    if (at(member).left.load()) return member;
  }
  return -1;
}

int DirectGroup::somebody_who_died() {
  for (int member = 0; member < size(); ++member) {
    if (has_died(member)) return member;
  }
  return -1;
}

bool DirectGroup::has_died(int member) {
  return !lives_.empty() && poll(&lives_[static_cast<std::size_t>(member)], 1, 0) > 0;
}

void DirectGroup::compare_calls() const {
  const CollectiveCall expected = read(call_of(0));
  for (int other = 1; other < size(); ++other) {
    const CollectiveCall call = read(call_of(other));
    const std::string difference = difference_of(call, world_rank(other), expected, world_rank(0));
    if (difference.empty()) continue;
    world_->poison(world_rank(other), call.operation, difference);
    world_->throw_failure();
  }
}

}  // namespace shardplan
