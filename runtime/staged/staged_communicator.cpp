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
    family_->collective(world_ranks_, group_, call, std::forward<Work>(work));
  }
  // Calls visit(peer) for each other member, beginning with the one after this rank.
  template <typename Visit>
  void for_each_peer(Visit&& visit) const {
    for (std::size_t step = 1; step < members(); ++step) visit((member_ + step) % members());
  }
  void reduce_pieces(const ReduceScatter& call);
  void gather_pieces(const std::byte* mine, std::byte* all, std::uint64_t width);

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
  collective(call, [&] { gather_pieces(mine.data(), all.data(), 1); });
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

void StagedCommunicator::reduce_scatter(const ReduceScatter& call, Stream& stream) {
  check_call(call);
  check_staging(call, size());
  stream.launching("reduce_scatter", Bytes{});
  collective(describe_call(call), [&] {
    check_tiling(call.elements);
    reduce_pieces(call);
  });
}

// The others' contributions to a block of this rank's piece lie side by side in the staging; its own stay where they are.
void StagedCommunicator::reduce_pieces(const ReduceScatter& call) {
  const std::uint64_t width = element_bytes(call.wire);
  const std::uint64_t room = peers() == 0 ? kLongestMessage.count() : call.staging_bytes / peers();
  std::uint64_t block_bytes = std::min(room, kLongestMessage.count()) / width * width;
  if (block_bytes > kBlockAlignment) block_bytes -= block_bytes % kBlockAlignment;
  const std::uint64_t block = block_bytes / width;
  const std::byte* input = call.input.arena->data() + call.input.offset;
  std::byte* staging = peers() == 0 ? nullptr : call.staging.arena->data() + call.staging.offset;
  ReduceRange range = range_of(call, members());
  range.inputs = inputs_.data();
  const std::uint64_t longest = longest_piece();
  for (std::uint64_t done = 0; done < longest; done += block) {
    const Piece mine = block_of(call.mine, done, block);
    inputs_[member_] = input + mine.first * width;
    std::byte* place = staging;
    for_each_peer([&](std::size_t peer) {
      const Piece theirs = block_of(piece_of(peer), done, block);
      if (theirs.count > 0) family_->send(world_ranks_[peer], {input + theirs.first * width, theirs.count * width});
      if (mine.count == 0) return;
      family_->receive(world_ranks_[peer], {place, mine.count * width});
      inputs_[peer] = place;
      place += block_bytes;
    });
    family_->exchange_messages();
    if (mine.count == 0) continue;
    range.output = call.output.place.arena->data() + call.output.place.offset + done * element_bytes(call.output.dtype);
    range.elements = mine.count;
    collective_kernels().back().reduce(range);
  }
}

void StagedCommunicator::all_gather(const AllGather& call, Stream& stream) {
  check_call(call);
  stream.launching("all_gather", Bytes{});
  collective(describe_call(call), [&] {
    check_tiling(call.elements);
    gather_pieces(call.input.arena->data() + call.input.offset, call.output.arena->data() + call.output.offset,
                  element_bytes(call.dtype));
  });
}

// Of the current collective, in elements of `width` bytes.
void StagedCommunicator::gather_pieces(const std::byte* mine, std::byte* all, std::uint64_t width) {
  const Piece& own = piece_of(member_);
  std::byte* place = all + own.first * width;
  if (place != mine && own.count > 0) std::memcpy(place, mine, own.count * width);
  const std::uint64_t most = kLongestMessage.count() / std::max<std::size_t>(peers(), 1);
  const std::uint64_t block = std::max<std::uint64_t>(most / width, 1);
  const std::uint64_t longest = longest_piece();
  for (std::uint64_t done = 0; done < longest; done += block) {
    const Piece sent = block_of(own, done, block);
    for_each_peer([&](std::size_t peer) {
      const Piece theirs = block_of(piece_of(peer), done, block);
      if (sent.count > 0) family_->send(world_ranks_[peer], {mine + done * width, sent.count * width});
      if (theirs.count > 0) family_->receive(world_ranks_[peer], {all + theirs.first * width, theirs.count * width});
    });
    family_->exchange_messages();
  }
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
