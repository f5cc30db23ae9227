#include "runtime/staged/staged_communicator.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "runtime/collective_checks.h"
#include "runtime/staged/staged_family.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kBlockAlignment = 64;

// What of a piece moves once `done` of it has moved, in blocks of so many elements.
Piece block_of(const Piece& piece, std::uint64_t done, std::uint64_t block) {
  const std::uint64_t left = piece.count - std::min(done, piece.count);
  return {piece.first + done, std::min(block, left)};
}

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::shared_ptr<StagedFamily> family, std::uint64_t group, std::vector<int> world_ranks)
      : family_(std::move(family)),
        group_(group),
        world_ranks_(std::move(world_ranks)),
        member_(static_cast<std::size_t>(std::find(world_ranks_.begin(), world_ranks_.end(), world_rank()) -
                                         world_ranks_.begin())),
        inputs_(world_ranks_.size()) {}

  int rank() const override { return static_cast<int>(member_); }
  int size() const override { return static_cast<int>(members()); }
  int world_rank() const override { return family_->exchange().rank(); }
  std::chrono::milliseconds deadline() const override { return family_->exchange().deadline(); }
  bool reads_peers() const override { return false; }

  void barrier() override {
    collective({.operation = "barrier"}, [] {});
  }
  void all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) override;
  std::unique_ptr<SymmetricArena> make_arena(Device& device, const ArenaOptions& options) override;
  void reduce_scatter(const ReduceScatter& call, Stream& stream) override;
  void all_gather(const AllGather& call, Stream& stream) override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(const std::string& reason) override { family_->poison({world_rank(), "abort", reason}); }

 private:
  std::size_t members() const { return world_ranks_.size(); }
  std::size_t peers() const { return members() - 1; }
  const Piece& piece_of(std::size_t member) const { return family_->call_of(member).piece; }
  std::uint64_t longest_piece() const;
  void check_tiling(std::uint64_t elements) const;

  template <typename Work>
  void collective(const CollectiveCall& call, Work&& work) {
    collective(call, [] {}, std::forward<Work>(work));
  }
  template <typename Early, typename Work>
  void collective(const CollectiveCall& call, Early&& early, Work&& work) {
    family_->collective(world_ranks_, group_, call, std::forward<Early>(early), std::forward<Work>(work));
  }
  // Calls visit(peer) for each other member, beginning with the one after this rank.
  template <typename Visit>
  void for_each_peer(Visit&& visit) const {
    for (std::size_t step = 1; step < members(); ++step) visit((member_ + step) % members());
  }
  template <typename Queue, typename Arrived>
  void in_blocks(const CollectiveCall& call, std::uint64_t elements, bool equal_pieces, std::uint64_t block,
                 Queue&& queue, Arrived&& arrived);
  std::uint64_t staged_block(const ReduceScatter& call) const;
  void gather_pieces(const CollectiveCall& call, std::uint64_t elements, bool equal_pieces, const std::byte* mine,
                     std::byte* all, std::uint64_t width);

  const std::shared_ptr<StagedFamily> family_;
  const std::uint64_t group_;
  const std::vector<int> world_ranks_;
  const std::size_t member_;
  std::vector<const std::byte*> inputs_;  // one per rank; here so that a collective allocates nothing
};

std::uint64_t StagedCommunicator::longest_piece() const {
  std::uint64_t longest = 0;
  for (std::size_t member = 0; member < members(); ++member) longest = std::max(longest, piece_of(member).count);
  return longest;
}

void StagedCommunicator::check_tiling(std::uint64_t elements) const {
  Tiling tiling;
  for (std::size_t member = 0; member < members(); ++member) tiling.add(world_ranks_[member], piece_of(member));
  tiling.ends_at(elements);
}

void StagedCommunicator::all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) {
  check_records(mine, all, rank(), size());
  const CollectiveCall call{.operation = "all_gather_bytes",
                            .same = {{{"bytes", mine.size()}}},
                            .piece = {member_ * mine.size(), mine.size()}};
  gather_pieces(call, all.size(), true, mine.data(), all.data(), 1);
}

std::unique_ptr<SymmetricArena> StagedCommunicator::make_arena(Device& device, const ArenaOptions& options) {
  family_->throw_if_poisoned();
  const CollectiveCall call{.operation = "make_arena",
                            .same = {{{"tier", static_cast<std::uint64_t>(options.tier), name(options.tier)},
                                      {"bytes", options.bytes.count()}}}};
  std::unique_ptr<Arena> arena;
  try {
    ArenaOptions own = options;
    own.rank = world_rank();
    arena = std::make_unique<Arena>(device, own);
  } catch (const std::exception& error) {
    family_->poison({world_rank(), call.operation, error.what()});
    throw;
  }
  std::shared_ptr<ArenaGroup> group;
  collective(call, [&] {
    group = std::make_shared<ArenaGroup>(family_->agree_on_id(members()), std::vector{world_rank()});
    group->join(world_rank(), std::shared_ptr<Arena>(std::move(arena)));
  });
  family_->remember(group);
  return std::make_unique<SymmetricArena>(std::move(group), world_rank());
}

// Moves a collective's data in blocks of at most `block` elements of each piece. `queue(done, piece)` queues the messages of
// the block that begins at `done` of the pieces piece(member); `arrived(done)` finds it received. Where all pieces are known
// to be equal the first block goes with the calls.
template <typename Queue, typename Arrived>
void StagedCommunicator::in_blocks(const CollectiveCall& call, std::uint64_t elements, bool equal_pieces,
                                   std::uint64_t block, Queue&& queue, Arrived&& arrived) {
  const auto equal = [&](std::size_t member) { return Piece{member * call.piece.count, call.piece.count}; };
  const auto told = [&](std::size_t member) { return piece_of(member); };
  const auto move = [&] {
    check_tiling(elements);
    SHARDPLAN_CHECK(!equal_pieces || elements == members() * call.piece.count, "the pieces are not equal");
    const std::uint64_t longest = longest_piece();
    for (std::uint64_t done = 0; done < longest; done += block) {
      if (done > 0 || !equal_pieces) {
        queue(done, told);
        family_->exchange_messages();
      }
      arrived(done);
    }
  };
  const auto early = [&] {
    if (equal_pieces) queue(std::uint64_t{0}, equal);
  };
  collective(call, early, move);
}

void StagedCommunicator::reduce_scatter(const ReduceScatter& call, Stream& stream) {
  check_call(call);
  check_staging(call, size());
  stream.launching("reduce_scatter", Bytes{});
  const std::uint64_t width = element_bytes(call.wire);
  const std::uint64_t block = staged_block(call);
  const std::byte* input = call.input.arena->data() + call.input.offset;
  std::byte* staging = peers() == 0 ? nullptr : call.staging.arena->data() + call.staging.offset;
  ReduceRange range = range_of(call, members());
  range.inputs = inputs_.data();
  // The others' contributions to a block of this rank's piece lie side by side in the staging; its own stay where they are.
  const auto queue = [&](std::uint64_t done, auto piece) {
    const Piece mine = block_of(call.mine, done, block);
    inputs_[member_] = input + mine.first * width;
    std::byte* place = staging;
    for_each_peer([&](std::size_t peer) {
      const Piece theirs = block_of(piece(peer), done, block);
      if (theirs.count > 0) family_->send(world_ranks_[peer], {input + theirs.first * width, theirs.count * width});
      if (mine.count == 0) return;
      family_->receive(world_ranks_[peer], {place, mine.count * width});
      inputs_[peer] = place;
      place += block * width;
    });
  };
  const auto sum = [&](std::uint64_t done) {
    range.output = call.output.place.arena->data() + call.output.place.offset + done * element_bytes(call.output.dtype);
    range.elements = block_of(call.mine, done, block).count;
    if (range.elements > 0) collective_kernels().back().reduce(range);
  };
  in_blocks(describe_call(call), call.elements, call.equal_pieces, block, queue, sum);
}

// Elements of the wire dtype for which the staging has room, from each peer.
std::uint64_t StagedCommunicator::staged_block(const ReduceScatter& call) const {
  const std::uint64_t width = element_bytes(call.wire);
  const std::uint64_t room = peers() == 0 ? kLongestMessage.count() : call.staging_bytes / peers();
  std::uint64_t bytes = std::min(room, kLongestMessage.count()) / width * width;
  if (bytes > kBlockAlignment) bytes -= bytes % kBlockAlignment;
  return bytes / width;
}

void StagedCommunicator::all_gather(const AllGather& call, Stream& stream) {
  check_call(call);
  stream.launching("all_gather", Bytes{});
  gather_pieces(describe_call(call), call.elements, call.equal_pieces, call.input.arena->data() + call.input.offset,
                call.output.arena->data() + call.output.offset, element_bytes(call.dtype));
}

// `mine` is this rank's piece, of elements of `width` bytes.
void StagedCommunicator::gather_pieces(const CollectiveCall& call, std::uint64_t elements, bool equal_pieces,
                                       const std::byte* mine, std::byte* all, std::uint64_t width) {
  const std::uint64_t most = kLongestMessage.count() / std::max<std::size_t>(peers(), 1);
  const std::uint64_t block = std::max<std::uint64_t>(most / width, 1);
  const auto queue = [&](std::uint64_t done, auto piece) {
    const Piece sent = block_of(call.piece, done, block);
    for_each_peer([&](std::size_t peer) {
      const Piece theirs = block_of(piece(peer), done, block);
      if (sent.count > 0) family_->send(world_ranks_[peer], {mine + done * width, sent.count * width});
      if (theirs.count > 0) family_->receive(world_ranks_[peer], {all + theirs.first * width, theirs.count * width});
    });
  };
  const auto keep_own = [&](std::uint64_t done) {
    std::byte* place = all + call.piece.first * width;
    if (done == 0 && place != mine && call.piece.count > 0) std::memcpy(place, mine, call.piece.count * width);
  };
  in_blocks(call, elements, equal_pieces, block, queue, keep_own);
}

// The members of a color in order of (key, rank). Groups of one split may have one number: nobody is in two of them.
std::unique_ptr<Communicator> StagedCommunicator::split(int color, int key) {
  std::vector<std::size_t> chosen;
  std::uint64_t group = 0;
  collective({.operation = "split", .color = color, .key = key}, [&] {
    group = family_->agree_on_id(members());
    for (std::size_t member = 0; member < members(); ++member) {
      if (family_->call_of(member).color == color) chosen.push_back(member);
    }
    std::stable_sort(chosen.begin(), chosen.end(),
                     [&](std::size_t a, std::size_t b) { return family_->call_of(a).key < family_->call_of(b).key; });
  });
  if (color < 0) return nullptr;
  std::vector<int> ranks;
  ranks.reserve(chosen.size());
  for (const std::size_t member : chosen) ranks.push_back(world_ranks_[member]);
  return std::make_unique<StagedCommunicator>(family_, group, std::move(ranks));
}

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Exchange> exchange) {
  std::vector<int> ranks(static_cast<std::size_t>(exchange->size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return std::make_unique<StagedCommunicator>(std::make_shared<StagedFamily>(std::move(exchange)), 0, std::move(ranks));
}

}  // namespace shardplan
