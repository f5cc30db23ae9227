// torch's caching allocator on numbers alone: what torch.cuda.max_memory_allocated and max_memory_reserved show for a
// sequence of allocations and frees on one stream.
//
// c10/cuda/CUDACachingAllocator.cpp, PyTorch 2.9:
//   * sizes are rounded up to 512 bytes (kMinBlockSize); up to 1 MiB (kSmallSize) come from the small pool, others from the
//     large one
//   * the smallest free block that is large enough is taken, the one with the lowest address among equals
//   * where there is none, a segment is made: 2 MiB (kSmallBuffer) for small sizes, 20 MiB (kLargeBuffer) below 10 MiB
//     (kMinLargeAlloc), else a multiple of 2 MiB (kRoundLarge)
//   * a block is split where at least 512 bytes remain in the small pool, more than 1 MiB in the large one (should_split):
//     what is not split off counts as allocated. So a tensor of more than 1 MiB may count up to 1 MiB more than it has
//   * expandable segments: one segment for each pool that grows by pages of 2 MiB or 20 MiB; every block is split
//   * freed blocks merge with free neighbours; segments are kept, until empty_cache gives back those that are free as a whole
// Limits of memory, at which cached segments are given back, are not modelled: reserved is what a large enough GPU shows.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "planner/activations/tape.h"
#include "planner/parallelism.h"

namespace shardplan {

struct AllocatorOptions {
  bool expandable_segments = false;  // PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
  // The step that is replayed finds an empty cache, as one behind torch.cuda.empty_cache() does, not what others left in it.
  bool empties_cache = false;
};

class CachingAllocator {
 public:
  // Names a block; one of no bytes has none and may be freed all the same.
  using Handle = std::uint32_t;

  explicit CachingAllocator(const AllocatorOptions& options = {}) : options_(options) {}

  Handle allocate(Bytes bytes);
  void free(Handle handle);
  // torch.cuda.empty_cache(): segments with no block in use are gone. Expandable ones keep their pages, which torch would unmap.
  void empty_cache();

  // Sizes of blocks in use, of all segments, and what was asked for, rounded up: allocated less the slack of blocks.
  Bytes allocated() const { return Bytes{allocated_}; }
  Bytes reserved() const { return Bytes{reserved_}; }
  Bytes requested() const { return Bytes{requested_}; }
  Bytes peak_allocated() const { return Bytes{peak_allocated_}; }
  Bytes peak_reserved() const { return Bytes{peak_reserved_}; }
  Bytes peak_requested() const { return Bytes{peak_requested_}; }

 private:
  static constexpr Handle kNone = UINT32_MAX;
  struct Block {
    std::uint64_t address = 0;
    std::uint64_t size = 0;
    std::uint64_t requested = 0;
    Handle before = kNone;  // neighbours in the segment
    Handle after = kNone;
    bool small = false;
    bool free = false;
  };
  struct Place {
    std::uint64_t size = 0;
    std::uint64_t address = 0;
    Handle handle = kNone;
    auto operator<=>(const Place&) const = default;
  };
  struct Pool {
    std::set<Place> free;
    Handle tail = kNone;  // the last block of the expandable segment
  };

  Pool& pool(bool small) { return pools_[small ? 0 : 1]; }
  Handle new_block(const Block& block);
  Handle find(std::uint64_t size, bool small);
  Handle add_segment(std::uint64_t size, bool small);
  Handle grow(std::uint64_t size, bool small);
  bool splits(std::uint64_t remaining, bool small) const;
  void split(Handle handle, std::uint64_t size);
  void set_free(Handle handle, bool free);
  Handle merged(Handle first, Handle second);

  AllocatorOptions options_;
  std::vector<Block> blocks_;
  std::vector<Handle> unused_;
  std::array<Pool, 2> pools_;
  std::uint64_t next_address_ = 0;
  std::uint64_t allocated_ = 0;
  std::uint64_t reserved_ = 0;
  std::uint64_t requested_ = 0;
  std::uint64_t peak_allocated_ = 0;
  std::uint64_t peak_reserved_ = 0;
  std::uint64_t peak_requested_ = 0;
};

// Replays a tape's allocations and frees in order; what the tape leaves held is freed at the end.
void replay(const autograd::Tape& tape, CachingAllocator& allocator);

// What a rank of a pipeline allocates: a block each for what stays and for what is there during a step, and a tape for each
// of its chunks that ran every unit (TapeOptions::folds off) for one micro-batch.
struct ReplayedRank {
  std::vector<Bytes> resident;
  std::vector<Bytes> in_step;
  std::vector<const autograd::Tape*> chunks;
};
struct ReplayedBytes {
  Bytes peak_allocated;  // with the slack of blocks
  Bytes peak_requested;  // without
  Bytes peak_reserved;
  Bytes allocated_after_step;
};
// Steps in the order of the schedule, one whose order of passes is known (planner/activations/pipeline.h). A few, since
// only the later ones find free blocks as training does.
ReplayedBytes replay_steps(const ReplayedRank& replayed, const Parallelism& parallelism, std::uint64_t rank,
                           std::uint64_t micro_batches, const AllocatorOptions& options);

}  // namespace shardplan
