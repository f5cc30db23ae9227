// Collectives among ranks that take turns: whoever comes last does the work of all, at the time that it costs.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "runtime/collective_checks.h"
#include "runtime/virtual/virtual_machine.h"

namespace shardplan {
namespace {

struct VirtualCall {
  CollectiveCall call;
  double ready = 0;  // when the rank had come to it
  bool present = false;
};

class VirtualGroup {
 public:
  VirtualGroup(VirtualMachine& machine, std::vector<int> world_ranks)
      : machine_(machine), world_ranks_(std::move(world_ranks)), calls_(world_ranks_.size()) {
    std::map<int, std::uint64_t> on_node;
    for (const int rank : world_ranks_) ++on_node[rank / machine.options().ranks_per_node];
    shape_ = {.ranks = world_ranks_.size(), .nodes = on_node.size()};
    for (const auto& [node, ranks] : on_node) shape_.ranks_per_node = std::max(shape_.ranks_per_node, ranks);
  }

  VirtualMachine& machine() const { return machine_; }
  int size() const { return static_cast<int>(world_ranks_.size()); }
  int world_rank(int member) const { return world_ranks_[static_cast<std::size_t>(member)]; }
  int member_of(int world_rank) const {
    return static_cast<int>(std::find(world_ranks_.begin(), world_ranks_.end(), world_rank) - world_ranks_.begin());
  }

  struct Span {
    double begin = 0;
    double end = 0;
    double network_share = 0;
  };

  // One collective: returns when it took place. `complete` is called once, on the last rank, when all have come; what it
  // leaves in this object stays until all have come again.
  // `ready_now` says when the rank has come to it, a stall at this very operation included.
  template <typename Ready, typename Complete>
  Span collective(int member, const CollectiveCall& call, Ready ready_now, VirtualCollective kind, Bytes bytes,
                  Complete complete) {
    const int rank = world_rank(member);
    machine_.throw_if_poisoned(rank);
    VirtualClock& clock = machine_.clock(rank);
    clock.operation(true);
    const double ready = ready_now();
    try {
      if (departed_ >= 0) fail(departed_, call.operation, "has left the group", ready);
      const Fault* fault = clock.message_fault();
      if (fault != nullptr && fault->kind == FaultKind::corrupt) {
        fail(rank, call.operation, fmt::format("rank {}'s message arrived damaged", rank), ready);
      }
      VirtualCall& mine = calls_[static_cast<std::size_t>(member)];
      mine = {call, ready, fault == nullptr};
      if (fault != nullptr) {
        machine_.wait(
            rank, {call.operation, ready, [rank] { return rank; }});  // nobody hears of it: all wait for their deadline
        machine_.throw_if_poisoned(rank);
      }
      if (++arrived_ < size()) {
        const std::uint64_t meeting = meetings_;
        machine_.wait(rank, {call.operation, ready, [this] { return missing(); }});
        if (meeting == meetings_) machine_.throw_if_poisoned(rank);
        return span_;
      }
      compare();
      require_in_time();
      complete();
      span_ = time_of(kind, bytes);
    } catch (const CommunicationError&) {
      throw;
    } catch (const std::exception& error) {
      machine_.poison(rank, call.operation, error.what(), ready);
      throw;
    }
    arrived_ = 0;
    ++meetings_;
    for (int other = 0; other < size(); ++other) {
      calls_[static_cast<std::size_t>(other)].present = false;
      if (other != member) machine_.wake(world_rank(other));
    }
    return span_;
  }

  const CollectiveCall& call_of(int member) const { return calls_[static_cast<std::size_t>(member)].call; }
  void leave(int member) {
    if (machine_.clock(world_rank(member)).killed()) return;
    if (departed_ < 0) departed_ = world_rank(member);
    if (arrived_ > 0) {
      machine_.poison(departed_, call_of_waiting().operation, "has left the group", machine_.clock(departed_).now());
    }
  }

  // Made by the last rank of a collective, read by all.
  std::vector<std::byte> records;
  std::shared_ptr<ArenaGroup> arenas;
  int arena_takers = 0;
  std::map<int, std::shared_ptr<VirtualGroup>> colors;

 private:
  [[noreturn]] void fail(int rank, const char* operation, const std::string& problem, double time) {
    machine_.poison(rank, operation, problem, time);
    throw CommunicationError(rank, operation, machine_.options().deadline, problem);
  }

  const CollectiveCall& call_of_waiting() const {
    const auto present = std::find_if(calls_.begin(), calls_.end(), [](const VirtualCall& c) { return c.present; });
    return (present == calls_.end() ? calls_.front() : *present).call;
  }

  // The lowest rank that has not come.
  int missing() const {
    for (int member = 0; member < size(); ++member) {
      if (!calls_[static_cast<std::size_t>(member)].present) return world_rank(member);
    }
    return -1;
  }

  void compare() {
    for (int member = 1; member < size(); ++member) {
      const std::string difference = difference_of(call_of(member), world_rank(member), call_of(0), world_rank(0));
      if (!difference.empty()) fail(world_rank(member), call_of(member).operation, difference, latest());
    }
  }

  // A rank that comes later than the others wait has been given up.
  void require_in_time() {
    const auto [first, last] = std::minmax_element(
        calls_.begin(), calls_.end(), [](const VirtualCall& a, const VirtualCall& b) { return a.ready < b.ready; });
    const double end = first->ready + std::chrono::duration<double>(machine_.options().deadline).count();
    if (last->ready <= end) return;
    fail(world_rank(static_cast<int>(last - calls_.begin())), last->call.operation,
         "did not arrive before the deadline", end);
  }

  double latest() const {
    double time = 0;
    for (const VirtualCall& call : calls_) time = std::max(time, call.ready);
    return time;
  }

  Span time_of(VirtualCollective kind, Bytes bytes) const {
    double factor = 1;
    for (const int rank : world_ranks_) factor = std::max(factor, machine_.clock(rank).link_factor());
    const double begin = latest();
    const CollectivePrice price = machine_.options().costs->collective(kind, bytes, shape_);
    return {begin, begin + factor * price.seconds, price.network_share};
  }

  VirtualMachine& machine_;
  std::vector<int> world_ranks_;
  GroupShape shape_;
  std::vector<VirtualCall> calls_;
  int arrived_ = 0;
  std::uint64_t meetings_ = 0;
  int departed_ = -1;
  Span span_;
};

class VirtualCommunicator final : public Communicator {
 public:
  VirtualCommunicator(std::shared_ptr<VirtualGroup> group, int member) : group_(std::move(group)), member_(member) {}
  ~VirtualCommunicator() override { group_->leave(member_); }

  int rank() const override { return member_; }
  int size() const override { return group_->size(); }
  int world_rank() const override { return group_->world_rank(member_); }
  std::chrono::milliseconds deadline() const override { return group_->machine().options().deadline; }

  void barrier() override {
    host_collective({.operation = "barrier"}, VirtualCollective::barrier, Bytes{}, [] {});
  }
  void all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) override {
    SHARDPLAN_CHECK(all.size() == mine.size() * static_cast<std::size_t>(size()),
                    "all_gather_bytes needs one record per rank");
    exchange("all_gather_bytes", mine);
    std::memcpy(all.data(), group_->records.data(), all.size());
  }
  void visit_records(std::span<const std::byte> mine, std::span<std::byte>, const RecordVisitor& visit) override {
    exchange("visit_records", mine);
    for (int peer = 0; peer < size(); ++peer) {
      visit(peer, std::span(group_->records).subspan(static_cast<std::size_t>(peer) * mine.size(), mine.size()));
    }
  }
  std::unique_ptr<SymmetricArena> make_arena(Device& device, const ArenaOptions& options) override;
  void reduce_scatter(const ReduceScatter& call, Stream& stream) override {
    check_call(call);
    on_stream(describe_call(call), VirtualCollective::reduce_scatter, call.wire, call.elements,
              call.elements - call.mine.count, stream);
  }
  void all_gather(const AllGather& call, Stream& stream) override {
    check_call(call);
    on_stream(describe_call(call), VirtualCollective::all_gather, call.dtype, call.elements,
              call.mine.count * (static_cast<std::uint64_t>(size()) - 1), stream);
  }
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(const std::string& reason) override {
    group_->machine().poison(world_rank(), "abort", reason, clock().now());
  }

 private:
  VirtualClock& clock() const { return group_->machine().clock(world_rank()); }

  template <typename Complete>
  void host_collective(const CollectiveCall& call, VirtualCollective kind, Bytes bytes, Complete complete) {
    const auto ready = [this] { return clock().now(); };
    clock().wait_until(group_->collective(member_, call, ready, kind, bytes, complete).end);
  }

  void exchange(const char* operation, std::span<const std::byte> mine) {
    const CollectiveCall call{.operation = operation,
                              .same = {{{"bytes", mine.size()}}},
                              .payload = const_cast<std::byte*>(mine.data())};  // which is only read
    const std::size_t all = mine.size() * static_cast<std::size_t>(size());
    host_collective(call, VirtualCollective::records, Bytes{all}, [&] {
      group_->records.resize(all);
      for (int peer = 0; peer < size() && !mine.empty(); ++peer) {
        std::memcpy(group_->records.data() + static_cast<std::size_t>(peer) * mine.size(),
                    group_->call_of(peer).payload, mine.size());
      }
    });
  }

  // `sent` elements go from this rank to others.
  void on_stream(const CollectiveCall& call, VirtualCollective kind, DType dtype, std::uint64_t elements,
                 std::uint64_t sent, Stream& stream) {
    stream.launching(call.operation, Bytes{});
    auto& mine = virtual_stream(stream);
    const Bytes bytes = bytes_for(dtype, elements);
    const auto span = group_->collective(
        member_, call, [&] { return mine.ready(); }, kind, bytes,
        [&] {
          Tiling tiling;
          for (int peer = 0; peer < size(); ++peer) tiling.add(group_->world_rank(peer), group_->call_of(peer).piece);
          tiling.ends_at(elements);
        });
    VirtualOutcome& outcome = clock().outcome;
    outcome.sent += bytes_for(dtype, sent);
    outcome.sent_over_network += span.network_share * static_cast<double>(bytes_for(dtype, sent).count());
    mine.communicated(call.operation, bytes, span.begin, span.end);
  }

  std::shared_ptr<VirtualGroup> group_;
  int member_;
};

std::unique_ptr<SymmetricArena> VirtualCommunicator::make_arena(Device& device, const ArenaOptions& options) {
  VirtualMachine& machine = group_->machine();
  machine.throw_if_poisoned(world_rank());
  const CollectiveCall call{.operation = "make_arena",
                            .same = {{{"tier", static_cast<std::uint64_t>(options.tier), name(options.tier)},
                                      {"bytes", options.bytes.count()}}}};
  std::unique_ptr<Arena> arena;
  try {
    ArenaOptions own = options;
    own.rank = world_rank();
    arena = std::make_unique<Arena>(device, own);
  } catch (const std::exception& error) {
    machine.poison(world_rank(), call.operation, error.what(), clock().now());
    throw;
  }
  host_collective(call, VirtualCollective::barrier, Bytes{}, [&] {
    std::vector<int> ranks;
    for (int peer = 0; peer < size(); ++peer) ranks.push_back(group_->world_rank(peer));
    group_->arenas = std::make_shared<ArenaGroup>(machine.next_arena_id(), std::move(ranks));
  });
  const std::shared_ptr<ArenaGroup> shared = group_->arenas;
  if (++group_->arena_takers == size()) {  // nobody holds it any more but its ranks
    group_->arenas.reset();
    group_->arena_takers = 0;
  }
  shared->join(world_rank(), std::move(arena));
  return std::make_unique<SymmetricArena>(shared, world_rank());
}

// The members of a color in order of (key, rank).
std::unique_ptr<Communicator> VirtualCommunicator::split(int color, int key) {
  const CollectiveCall call{.operation = "split", .color = color, .key = key};
  host_collective(call, VirtualCollective::barrier, Bytes{}, [&] {
    std::map<int, std::vector<int>> members;
    for (int peer = 0; peer < size(); ++peer) {
      if (group_->call_of(peer).color >= 0) members[group_->call_of(peer).color].push_back(peer);
    }
    group_->colors.clear();
    for (auto& [shade, peers] : members) {
      std::stable_sort(peers.begin(), peers.end(),
                       [&](int a, int b) { return group_->call_of(a).key < group_->call_of(b).key; });
      std::vector<int> ranks;
      for (const int peer : peers) ranks.push_back(group_->world_rank(peer));
      group_->colors[shade] = std::make_shared<VirtualGroup>(group_->machine(), std::move(ranks));
    }
  });
  if (color < 0) return nullptr;
  std::shared_ptr<VirtualGroup> mine = group_->colors.at(color);
  const int member = mine->member_of(world_rank());
  return std::make_unique<VirtualCommunicator>(std::move(mine), member);
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_virtual_communicators(VirtualMachine& machine) {
  std::vector<int> ranks(static_cast<std::size_t>(machine.options().ranks));
  std::iota(ranks.begin(), ranks.end(), 0);
  const auto world = std::make_shared<VirtualGroup>(machine, ranks);
  std::vector<std::unique_ptr<Communicator>> communicators;
  communicators.reserve(ranks.size());
  for (const int rank : ranks) communicators.push_back(std::make_unique<VirtualCommunicator>(world, rank));
  return communicators;
}

}  // namespace shardplan
