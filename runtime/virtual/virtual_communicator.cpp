// Collectives among ranks that take turns.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "runtime/collective_checks.h"
#include "runtime/virtual/virtual_group.h"

namespace shardplan {
namespace {

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
    if (!all.empty()) std::memcpy(all.data(), group_->records.data(), all.size());
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
              call.elements - call.mine.count, link_seconds(call), stream);
  }
  void all_gather(const AllGather& call, Stream& stream) override {
    check_call(call);
    on_stream(describe_call(call), VirtualCollective::all_gather, call.dtype, call.elements,
              call.mine.count * (static_cast<std::uint64_t>(size()) - 1), link_seconds(call), stream);
  }
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(const std::string& reason) override {
    group_->machine().poison(world_rank(), "abort", reason, clock().now());
  }

 private:
  VirtualClock& clock() const { return group_->machine().clock(world_rank()); }

  // What every collective begins with: counts it, and does what is to happen at it.
  void enter() {
    group_->machine().throw_if_poisoned(world_rank());
    clock().operation(true);
  }

  template <typename Complete>
  void host_collective(const CollectiveCall& call, VirtualCollective kind, Bytes bytes, Complete complete) {
    enter();
    const double called = clock().now();
    const VirtualGroup::Span span = group_->meet(member_, call, called, kind, bytes, complete);
    clock().communicated(called, span.begin, span.end);
    clock().wait_until(span.end);
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
                    group_->arrival(peer).payload, mine.size());
      }
    });
  }

  // What a call reads and writes of its rank's own host memory crosses the link, while its bytes move.
  double link_seconds(const ReduceScatter& call) const {
    VirtualTraffic traffic;
    traffic.reads(call.input.arena->data(), bytes_for(call.wire, call.elements));
    const Bytes sums = bytes_for(call.output.dtype, call.mine.count);
    if (call.output.mode == ReductionOutput::Mode::add) traffic.reads(call.output.place.arena->data(), sums);
    traffic.writes(call.output.place.arena->data(), sums);
    return traffic.link_seconds(*group_->machine().options().costs);
  }
  double link_seconds(const AllGather& call) const {
    return VirtualTraffic()
        .reads(call.input.arena->data(), bytes_for(call.dtype, call.mine.count))
        .writes(call.output.arena->data(), bytes_for(call.dtype, call.elements))
        .link_seconds(*group_->machine().options().costs);
  }

  // `sent` elements go from this rank to others.
  void on_stream(const CollectiveCall& call, VirtualCollective kind, DType dtype, std::uint64_t elements,
                 std::uint64_t sent, double link_seconds, Stream& stream) {
    VirtualStream& mine = virtual_stream(clock(), stream, call.operation);
    const Bytes bytes = bytes_for(dtype, elements);
    enter();
    const double called = mine.ready();
    const VirtualGroup::Span span = group_->meet(member_, call, called, kind, bytes, [&] {
      Tiling tiling;
      for (int peer = 0; peer < size(); ++peer) tiling.add(group_->world_rank(peer), group_->arrival(peer).piece);
      tiling.ends_at(elements);
    });
    VirtualOutcome& outcome = clock().outcome;
    outcome.sent += bytes_for(dtype, sent);
    outcome.sent_over_network += span.network_share * static_cast<double>(bytes_for(dtype, sent).count());
    const double end = std::max(span.end, span.begin + in_ticks(link_seconds));
    mine.communicated({call.operation, bytes, called, span.begin, end, span.last});
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
      if (group_->arrival(peer).color >= 0) members[group_->arrival(peer).color].push_back(peer);
    }
    group_->colors.clear();
    for (auto& [shade, peers] : members) {
      std::stable_sort(peers.begin(), peers.end(),
                       [&](int a, int b) { return group_->arrival(a).key < group_->arrival(b).key; });
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
