#include "planner/activations/allocator.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "base/error.h"
#include "planner/activations/activity.h"
#include "planner/activations/pipeline.h"

namespace shardplan {
namespace {

using autograd::Event;
using autograd::Pass;
using autograd::Tape;

constexpr std::uint64_t kMinBlockSize = 512;
constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kSmallSize = kMiB;
constexpr std::uint64_t kSmallBuffer = 2 * kMiB;
constexpr std::uint64_t kLargeBuffer = 20 * kMiB;
constexpr std::uint64_t kMinLargeAlloc = 10 * kMiB;
constexpr std::uint64_t kRoundLarge = 2 * kMiB;

std::uint64_t segment_size(std::uint64_t size) {
  if (size <= kSmallSize) return kSmallBuffer;
  return size < kMinLargeAlloc ? kLargeBuffer : round_up(size, kRoundLarge);
}

// One micro-batch in one chunk: which block each storage has.
class Replay {
 public:
  Replay(const Tape& tape, CachingAllocator& allocator)
      : tape_(&tape), allocator_(&allocator), blocks_(tape.storages().size()), live_(tape.storages().size()) {}

  void run(std::size_t end) {
    for (; next_ < end; ++next_) {
      const Event& event = tape_->events()[next_];
      if (event.allocated)
        blocks_[event.storage] = allocator_->allocate(Bytes{tape_->storages()[event.storage].bytes});
      else
        allocator_->free(blocks_[event.storage]);
      live_[event.storage] = event.allocated;
    }
  }
  void finish() {
    run(tape_->events().size());
    for (std::size_t i = 0; i < live_.size(); ++i) {
      if (live_[i]) allocator_->free(blocks_[i]);
    }
  }

 private:
  const Tape* tape_;
  CachingAllocator* allocator_;
  std::vector<CachingAllocator::Handle> blocks_;
  std::vector<bool> live_;
  std::size_t next_ = 0;
};

}  // namespace

CachingAllocator::Handle CachingAllocator::new_block(const Block& block) {
  if (unused_.empty()) {
    blocks_.push_back(block);
    return static_cast<Handle>(blocks_.size() - 1);
  }
  const Handle handle = unused_.back();
  unused_.pop_back();
  blocks_[handle] = block;
  return handle;
}

void CachingAllocator::set_free(Handle handle, bool free) {
  Block& block = blocks_[handle];
  if (block.free == free) return;
  block.free = free;
  const Place place{block.size, block.address, handle};
  if (free)
    pool(block.small).free.insert(place);
  else
    pool(block.small).free.erase(place);
}

CachingAllocator::Handle CachingAllocator::find(std::uint64_t size, bool small) {
  const std::set<Place>& free = pool(small).free;
  auto found = free.lower_bound({size, 0, 0});
  // The end of an expandable segment counts as long as it can grow: it comes last.
  if (found != free.end() && found->handle == pool(small).tail && std::next(found) != free.end()) ++found;
  return found == free.end() ? kNone : found->handle;
}

CachingAllocator::Handle CachingAllocator::add_segment(std::uint64_t size, bool small) {
  const std::uint64_t whole = segment_size(size);
  const Handle handle = new_block({.address = next_address_, .size = whole, .small = small});
  next_address_ += whole;
  reserved_ += whole;
  return handle;
}

// Maps pages behind the last block, which is part of the new one where it is free.
CachingAllocator::Handle CachingAllocator::grow(std::uint64_t size, bool small) {
  const std::uint64_t page = small ? kSmallBuffer : kLargeBuffer;
  Handle& tail = pool(small).tail;
  const bool extends = tail != kNone && blocks_[tail].free;
  const std::uint64_t more = round_up(size - (extends ? blocks_[tail].size : 0), page);
  reserved_ += more;
  if (extends) {
    set_free(tail, false);
    blocks_[tail].size += more;
    return tail;
  }
  // Pools have address spaces of their own; only the order inside one matters.
  const std::uint64_t address = tail == kNone ? 0 : blocks_[tail].address + blocks_[tail].size;
  const Handle handle = new_block({.address = address, .size = more, .before = tail, .small = small});
  if (tail != kNone) blocks_[tail].after = handle;
  tail = handle;
  return handle;
}

bool CachingAllocator::splits(std::uint64_t remaining, bool small) const {
  return small || options_.expandable_segments ? remaining >= kMinBlockSize : remaining > kSmallSize;
}

void CachingAllocator::split(Handle handle, std::uint64_t size) {
  Block rest = blocks_[handle];
  if (!splits(rest.size - size, rest.small)) return;
  rest.address += size;
  rest.size -= size;
  rest.before = handle;
  rest.free = false;
  const Handle behind = new_block(rest);
  blocks_[handle].size = size;
  blocks_[handle].after = behind;
  if (rest.after != kNone) blocks_[rest.after].before = behind;
  if (pool(rest.small).tail == handle) pool(rest.small).tail = behind;
  set_free(behind, true);
}

CachingAllocator::Handle CachingAllocator::allocate(Bytes bytes) {
  if (bytes == Bytes{}) return kNone;
  const std::uint64_t size = round_up(bytes.count(), kMinBlockSize);
  const bool small = size <= kSmallSize;
  Handle handle = find(size, small);
  if (handle != kNone) {
    set_free(handle, false);
  } else {
    handle = options_.expandable_segments ? grow(size, small) : add_segment(size, small);
  }
  split(handle, size);
  blocks_[handle].requested = size;
  allocated_ += blocks_[handle].size;
  requested_ += size;
  peak_allocated_ = std::max(peak_allocated_, allocated_);
  peak_requested_ = std::max(peak_requested_, requested_);
  peak_reserved_ = std::max(peak_reserved_, reserved_);
  return handle;
}

// Both of one segment, the second behind the first.
CachingAllocator::Handle CachingAllocator::merged(Handle first, Handle second) {
  set_free(first, false);
  set_free(second, false);
  blocks_[first].size += blocks_[second].size;
  blocks_[first].after = blocks_[second].after;
  if (blocks_[first].after != kNone) blocks_[blocks_[first].after].before = first;
  if (pool(blocks_[first].small).tail == second) pool(blocks_[first].small).tail = first;
  unused_.push_back(second);
  return first;
}

void CachingAllocator::free(Handle handle) {
  if (handle == kNone) return;
  SHARDPLAN_CHECK(handle < blocks_.size() && !blocks_[handle].free, "a block that is in use");
  allocated_ -= blocks_[handle].size;
  requested_ -= blocks_[handle].requested;
  const Handle before = blocks_[handle].before;
  const Handle after = blocks_[handle].after;
  if (after != kNone && blocks_[after].free) handle = merged(handle, after);
  if (before != kNone && blocks_[before].free) handle = merged(before, handle);
  set_free(handle, true);
}

void CachingAllocator::empty_cache() {
  if (options_.expandable_segments) return;
  for (const bool small : {false, true}) {
    std::erase_if(pool(small).free, [&](const Place& place) {
      Block& block = blocks_[place.handle];
      if (block.before != kNone || block.after != kNone) return false;
      reserved_ -= block.size;
      unused_.push_back(place.handle);
      return true;
    });
  }
}

void replay(const Tape& tape, CachingAllocator& allocator) {
  Replay(tape, allocator).finish();
}

ReplayedBytes replay_steps(const ReplayedRank& replayed, const Parallelism& parallelism, std::uint64_t rank,
                           std::uint64_t micro_batches, const AllocatorOptions& options) {
  constexpr int kSteps = 2;
  CachingAllocator allocator(options);
  for (const Bytes bytes : replayed.resident) allocator.allocate(bytes);
  std::vector<std::size_t> forward_ends;
  for (const Tape* tape : replayed.chunks) forward_ends.push_back(end_of_forward(*tape));
  // A pipeline that is full goes on as it is.
  const std::uint64_t enough = std::min(micro_batches, 4 * parallelism.pipeline);
  const std::vector<ChunkPass> passes = order_of_passes(parallelism, rank, enough);
  for (int step = 0; step < kSteps; ++step) {
    std::vector<CachingAllocator::Handle> in_step;
    for (const Bytes bytes : replayed.in_step) in_step.push_back(allocator.allocate(bytes));
    std::vector<std::deque<Replay>> under_way(replayed.chunks.size());
    for (const ChunkPass& pass : passes) {
      std::deque<Replay>& queue = under_way.at(pass.chunk);
      if (pass.pass == Pass::forward) {
        queue.emplace_back(*replayed.chunks[pass.chunk], allocator);
        queue.back().run(forward_ends[pass.chunk]);
      } else {
        queue.front().finish();
        queue.pop_front();
      }
    }
    for (const CachingAllocator::Handle handle : in_step) allocator.free(handle);
    if (options.empties_cache) allocator.empty_cache();
  }
  return {allocator.peak_allocated(), allocator.peak_requested(), allocator.peak_reserved(), allocator.allocated()};
}

}  // namespace shardplan
