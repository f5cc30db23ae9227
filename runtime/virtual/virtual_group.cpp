#include "runtime/virtual/virtual_group.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace shardplan {
namespace {

// A rank whose message is lost: nobody hears of it, and all wait for their deadlines.
class Unheard final : public MeetingPlace {
 public:
  explicit Unheard(int rank) : rank_(rank) {}
  int missing() const override { return rank_; }

 private:
  int rank_;
};

std::uint64_t most(const std::map<int, std::uint64_t>& counts) {
  std::uint64_t largest = 0;
  for (const auto& [where, count] : counts) largest = std::max(largest, count);
  return largest;
}

}  // namespace

VirtualGroup::VirtualGroup(VirtualMachine& machine, std::vector<int> world_ranks)
    : Transfer(machine.transfers(), world_ranks),
      machine_(machine),
      world_ranks_(std::move(world_ranks)),
      arrivals_(world_ranks_.size()) {
  std::map<int, std::uint64_t> on_node;
  std::map<int, std::uint64_t> on_adapter;
  for (const int rank : world_ranks_) {
    ++on_node[rank / machine.options().ranks_per_node];
    ++on_adapter[rank / machine.options().ranks_per_adapter];
  }
  shape_ = {.ranks = world_ranks_.size(),
            .nodes = on_node.size(),
            .ranks_per_node = most(on_node),
            .ranks_per_adapter = most(on_adapter)};
}

int VirtualGroup::member_of(int world_rank) const {
  return static_cast<int>(std::find(world_ranks_.begin(), world_ranks_.end(), world_rank) - world_ranks_.begin());
}

bool VirtualGroup::arrive(int member, const CollectiveCall& call, double called) {
  const int rank = world_rank(member);
  if (departed_ >= 0) fail(departed_, call.operation, "has left the group", called);
  const Fault* fault = machine_.clock(rank).message_fault();
  if (fault != nullptr && fault->kind == FaultKind::corrupt) {
    fail(rank, call.operation, fmt::format("rank {}'s message arrived damaged", rank), called);
  }
  Arrival& mine = arrivals_[static_cast<std::size_t>(member)];
  mine = {call.piece, call.payload, call.color, call.key, called, fault == nullptr};
  if (fault != nullptr) {
    const Unheard unheard(rank);
    machine_.wait(rank, call.operation, called, &unheard);
    machine_.throw_if_poisoned(rank);
  }
  if (arrived_ == 0) {
    first_call_ = call;
    unequal_.clear();
  } else if (!difference_of(call, 0, first_call_, 0).empty()) {
    unequal_.emplace_back(member, call);
  }
  if (++arrived_ == size()) {
    require_equal_calls();
    require_in_time();
    return true;
  }
  const std::uint64_t meeting = meetings_;
  machine_.wait(rank, call.operation, called, this);
  if (meeting == meetings_) machine_.throw_if_poisoned(rank);
  return false;
}

// On the last rank: all have come, and go on when the collective is over.
void VirtualGroup::begin(int member, VirtualCollective kind, Bytes bytes) {
  double factor = 1;
  for (const int rank : world_ranks_) factor = std::max(factor, machine_.clock(rank).link_factor());
  const auto last = std::max_element(arrivals_.begin(), arrivals_.end(),
                                     [](const Arrival& a, const Arrival& b) { return a.called < b.called; });
  const CollectivePrice price = machine_.options().costs->collective(kind, bytes, shape_);
  span_ = {.begin = last->called,
           .network_share = price.network_share,
           .last = world_rank(static_cast<int>(last - arrivals_.begin()))};
  arrived_ = 0;
  ++meetings_;
  for (int other = 0; other < size(); ++other) {
    arrivals_[static_cast<std::size_t>(other)].present = false;
    machine_.met(world_rank(other));
  }
  machine_.transfers().begin(*this, price, factor, span_.begin);
  machine_.wait(world_rank(member), "", span_.begin, nullptr);
}

void VirtualGroup::ended(double time) {
  span_.end = time;
  for (const int rank : world_ranks_) machine_.wake(rank);
}

void VirtualGroup::leave(int member) {
  if (machine_.clock(world_rank(member)).killed()) return;
  if (departed_ < 0) departed_ = world_rank(member);
  if (arrived_ == 0) return;
  machine_.poison(departed_, first_call_.operation, "has left the group", machine_.clock(departed_).now());
}

// The lowest rank that has not come.
int VirtualGroup::missing() const {
  for (int member = 0; member < size(); ++member) {
    if (!arrival(member).present) return world_rank(member);
  }
  return -1;
}

const CollectiveCall& VirtualGroup::call_of(int member) const {
  const auto found =
      std::find_if(unequal_.begin(), unequal_.end(), [&](const auto& call) { return call.first == member; });
  return found == unequal_.end() ? first_call_ : found->second;
}

void VirtualGroup::require_equal_calls() {
  if (unequal_.empty()) return;
  double latest = 0;
  for (const Arrival& arrival : arrivals_) latest = std::max(latest, arrival.called);
  for (int member = 1; member < size(); ++member) {
    const std::string difference = difference_of(call_of(member), world_rank(member), call_of(0), world_rank(0));
    if (!difference.empty()) fail(world_rank(member), call_of(member).operation, difference, latest);
  }
}

// A rank that comes later than the others wait has been given up.
void VirtualGroup::require_in_time() {
  const auto [first, last] = std::minmax_element(
      arrivals_.begin(), arrivals_.end(), [](const Arrival& a, const Arrival& b) { return a.called < b.called; });
  const double end = first->called + in_ticks(machine_.options().deadline);
  if (last->called <= end) return;
  fail(world_rank(static_cast<int>(last - arrivals_.begin())), first_call_.operation,
       "did not arrive before the deadline", end);
}

void VirtualGroup::fail(int rank, const char* operation, const std::string& problem, double time) {
  machine_.poison(rank, operation, problem, time);
  throw CommunicationError(rank, operation, machine_.options().deadline, problem);
}

}  // namespace shardplan
