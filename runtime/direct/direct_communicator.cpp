#include "runtime/direct/direct_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "runtime/collective_checks.h"
#include "runtime/collective_kernels.h"
#include "runtime/streaming_copy.h"

namespace shardplan {
namespace {

// Blocks between two looks at whether the family is poisoned.
constexpr Bytes kWorkBlock = 256_KiB;

const CollectiveKernels& best_kernels() {
  return collective_kernels().back();
}

}  // namespace

DirectCommunicator::DirectCommunicator(std::shared_ptr<DirectWorld> world, std::shared_ptr<std::byte> common,
                                       std::vector<int> world_ranks, int member)
    : group_(std::move(world), std::move(common), std::move(world_ranks), member),
      inputs_(static_cast<std::size_t>(group_.size())) {}

void DirectCommunicator::barrier() {
  group_.collective({.operation = "barrier"}, 0, [] {});
}

void DirectCommunicator::all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) {
  check_records(mine, all, rank(), size());
  const CollectiveCall call{.operation = "all_gather_bytes", .same = {{{"bytes", mine.size()}}}};
  std::size_t done = 0;
  do {
    const std::size_t part = std::min(mine.size() - done, DirectGroup::kRecordRoom);
    if (part != 0) std::memcpy(group_.own_record().data(), mine.data() + done, part);
    group_.collective(call, 0, [&] {
      for (int peer = 0; peer < size() && part != 0; ++peer) {
        std::byte* const to = all.data() + static_cast<std::size_t>(peer) * mine.size() + done;
        std::memcpy(to, group_.record_of(peer).data(), part);
      }
    });
    done += part;
  } while (done < mine.size());
}

// Processes take turns: each is to see what the one before has taken, and be refused what is not there.
void DirectCommunicator::allocate(Device& device, const ArenaOptions& options, const CollectiveCall& call,
                                  std::shared_ptr<Arena>& arena) {
  const bool turns = world().neighbours().processes();
  for (int turn = 0; turn < (turns ? size() : 1); ++turn) {
    if (!turns || turn == rank()) {
      try {
        ArenaOptions own = options;
        own.rank = world_rank();
        arena = std::make_shared<Arena>(device, own);
        group_.own_offer() = world().neighbours().offer_arena(arena, device);
      } catch (const std::exception& error) {
        world().poison(world_rank(), call.operation, error.what());
        throw;
      }
    }
    if (turns) group_.collective(call, 0, [] {});
  }
}

// A memory that cannot be opened is its owner's failure, not this rank's; above all where the owner has died.
template <typename Open>
void DirectCommunicator::open_from(int peer, const CollectiveCall& call, Open open) {
  try {
    open(group_.world_rank(peer), group_.offer_of(peer));
  } catch (const IoError& error) {
    const bool died = group_.has_died(peer);
    world().poison(group_.world_rank(peer), call.operation, died ? "has died: its process is gone" : error.what());
    world().throw_failure();
  }
}

std::unique_ptr<SymmetricArena> DirectCommunicator::make_arena(Device& device, const ArenaOptions& options) {
  group_.keep_going();
  const CollectiveCall call{.operation = "make_arena",
                            .same = {{{"tier", static_cast<std::uint64_t>(options.tier), name(options.tier)},
                                      {"bytes", options.bytes.count()}}}};
  std::shared_ptr<Arena> arena;
  allocate(device, options, call, arena);
  const std::uint64_t id = rank() == 0 ? world().next_arena_id() : 0;
  std::shared_ptr<ArenaGroup> group;
  group_.collective(call, id, [&] {
    group = std::make_shared<ArenaGroup>(group_.call_of(0).place, group_.world_ranks());
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) {
        group->join(world_rank(), arena);
        continue;
      }
      open_from(peer, call,
                [&](int owner, const Offer& offer) { world().neighbours().open_arena(owner, offer, *group); });
    }
  });
  return std::make_unique<SymmetricArena>(std::move(group), world_rank());
}

void DirectCommunicator::check_tiling(std::uint64_t elements) const {
  Tiling tiling;
  for (int peer = 0; peer < size(); ++peer) tiling.add(group_.world_rank(peer), group_.call_of(peer).piece);
  tiling.ends_at(elements);
}

void DirectCommunicator::reduce_scatter(const ReduceScatter& call, Stream& stream) {
  check_call(call);
  stream.launching("reduce_scatter", Bytes{});
  group_.collective(describe_call(call), call.input.offset, [&] {
    check_tiling(call.elements);
    reduce_piece(call);
  });
}

void DirectCommunicator::reduce_piece(const ReduceScatter& call) {
  const std::uint64_t width = element_bytes(call.wire);
  const std::uint64_t output_width = element_bytes(call.output.dtype);
  const std::uint64_t block = kWorkBlock.count() / width;
  ReduceRange range = range_of(call, inputs_.size());
  range.inputs = inputs_.data();
  range.streams = call.mine.count * output_width >= kStreamedFrom.count();
  for (std::uint64_t done = 0; done < call.mine.count; done += block) {
    group_.keep_going();
    for (int peer = 0; peer < size(); ++peer) {
      inputs_[static_cast<std::size_t>(peer)] =
          call.input.arena->peer(group_.world_rank(peer)) + call.input.offset + (call.mine.first + done) * width;
    }
    range.output = call.output.place.arena->data() + call.output.place.offset + done * output_width;
    range.elements = std::min(block, call.mine.count - done);
    best_kernels().reduce(range);
  }
  if (range.streams) streaming_fence();
}

void DirectCommunicator::all_gather(const AllGather& call, Stream& stream) {
  check_call(call);
  stream.launching("all_gather", Bytes{});
  group_.collective(describe_call(call), call.input.offset, [&] {
    check_tiling(call.elements);
    copy_pieces(call);
  });
}

// Each rank starts at its own piece, so that not all read the same peer at once.
void DirectCommunicator::copy_pieces(const AllGather& call) {
  const std::uint64_t width = element_bytes(call.dtype);
  std::byte* output = call.output.arena->data() + call.output.offset;
  const bool streams = call.elements * width >= kStreamedFrom.count();
  for (int step = 0; step < size(); ++step) {
    const int peer = (rank() + step) % size();
    const CallRecord& theirs = group_.call_of(peer);
    const std::byte* from = call.input.arena->peer(group_.world_rank(peer)) + theirs.place;
    std::byte* to = output + theirs.piece.first * width;
    const std::uint64_t bytes = theirs.piece.count * width;
    if (from == to) continue;
    for (std::uint64_t done = 0; done < bytes; done += kWorkBlock.count()) {
      group_.keep_going();
      const std::size_t block = std::min(kWorkBlock.count(), bytes - done);
      if (streams) {
        streaming_copy(to + done, from + done, block);
      } else {
        std::memcpy(to + done, from + done, block);
      }
    }
  }
  if (streams) streaming_fence();
}

// The members of a color in order of (key, rank).
std::vector<int> DirectCommunicator::members_of(int color) const {
  std::vector<int> members;
  for (int peer = 0; peer < size(); ++peer) {
    if (group_.call_of(peer).color == color) members.push_back(peer);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](int a, int b) { return group_.call_of(a).key < group_.call_of(b).key; });
  return members;
}

// The first member of a color makes the group's memory, the others open it.
std::unique_ptr<Communicator> DirectCommunicator::split(int color, int key) {
  const CollectiveCall call{.operation = "split", .color = color, .key = key};
  std::vector<int> members;
  CommonMemory made;
  group_.collective(call, 0, [&] {
    if (color < 0) return;
    members = members_of(color);
    if (members.front() != rank()) return;
    made = world().neighbours().make_common(DirectGroup::common_bytes(static_cast<int>(members.size())));
  });
  group_.own_offer() = made.offer;
  group_.collective(call, 0, [&] {
    if (color < 0 || members.front() == rank()) return;
    open_from(members.front(), call,
              [&](int owner, const Offer& offer) { made.bytes = world().neighbours().open_common(owner, offer); });
  });
  if (color < 0) return nullptr;
  std::vector<int> world_ranks;
  world_ranks.reserve(members.size());
  for (const int peer : members) world_ranks.push_back(group_.world_rank(peer));
  const auto own = std::find(members.begin(), members.end(), rank());
  return std::make_unique<DirectCommunicator>(group_.world(), std::move(made.bytes), std::move(world_ranks),
                                              static_cast<int>(own - members.begin()));
}

}  // namespace shardplan
