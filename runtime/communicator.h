// A communicator: a group of ranks that call the same collectives in the same order.
//
// Contract, for every implementation:
//   1. Reduction tree. Contributions are converted to fp32 and summed in fp32: the first `group_size` ranks
//   in rank
//      order, starting from the first rank's value, then the next ones, and so on (the last group may be
//      smaller); then the groups' partial sums in order, starting from the first; then times `scale`. No
//      fused multiply-add. An element's bits depend on the contributions, the tree and the scale alone: not
//      on the ranks' ranges, on blocks, threads, processor or transport. (A NaN stays a NaN; its payload is
//      not promised.)
//   2. Order. A collective returns on a rank when its own output is complete and nobody reads its arena any
//   more; what
//      was written before the call on any rank is what is read.
//   3. Deadline. No wait for a peer is longer than deadline(). A peer that is late, has left (its
//   communicator is
//      destroyed), gave up (abort) or calls something else gives CommunicationError on every other rank; it
//      names the peer and the operation. Ranks in errors are world ranks. Ranks of one failed collective may
//      learn of it at different moments: some may still return from it and fail in the next call.
//   4. Poison. After a failure every communicator of the family (all that were split from one) is poisoned:
//   each call
//      throws the first error again, at once. The destructor performs no collective, and leaves.
//   5. Blocking. A rank blocks only in these calls, in Event::wait and in tiers.
//   6. A call allocates nothing, but make_arena, split and failures.
// Threads: a communicator belongs to one rank, which makes one call at a time; abort may come from any
// thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/dtype.h"
#include "runtime/symmetric_arena.h"

namespace shardplan {

// The reduction tree's group that holds all ranks: a flat sum in rank order.
inline constexpr int kWholeGroup = 0;

struct ArenaPlace {
  SymmetricArena* arena = nullptr;
  std::uint64_t offset = 0;  // bytes; a multiple of the element's size
};

// A rank's elements of a buffer. The ranks' pieces tile it in rank order; some may be empty.
struct Piece {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

struct ReductionOutput {
  enum class Mode : std::uint8_t {
    store,  // output = sum, rounded once to dtype
    add,    // output = output + sum in fp32, rounded once to dtype
  };
  Mode mode = Mode::store;
  DType dtype = DType::f32;  // f32, bf16 or f16
  // This rank's `mine.count` elements. They may lie on exactly this rank's own elements of the input, if the
  // widths are equal; any other overlap is an error.
  ArenaPlace place = {};
};

// Each rank sums its own piece of a buffer over all ranks.
struct ReduceScatter {
  DType wire = DType::f32;     // of the contributions: f32, bf16 or f16
  ArenaPlace input = {};       // the buffer's first element; the same place on every rank
  std::uint64_t elements = 0;  // of the whole buffer
  Piece mine = {};
  bool equal_pieces = false;  // of all ranks, in rank order: said so by all, lets data go before all calls are compared
  int group_size = kWholeGroup;  // of the reduction tree
  float scale = 1.0F;
  ReductionOutput output = {};
  // Only where ranks do not read each other's arenas (reads_peers()): room for pieces of the other ranks' contributions,
  // of the same size on every rank, apart from input and output. Less of it means more and smaller messages; at least
  // one element from each other rank.
  ArenaPlace staging = {};
  std::uint64_t staging_bytes = 0;
};

// Every rank gets the whole buffer, from the ranks' pieces.
struct AllGather {
  DType dtype = DType::f32;    // any whole number of bytes
  ArenaPlace input = {};       // this rank's first element of its piece
  ArenaPlace output = {};      // the buffer's first element; the same place on every rank. If input lies on exactly
                               // this rank's piece of it, the gather is in place; any other overlap is an error
  std::uint64_t elements = 0;  // of the whole buffer
  Piece mine = {};
  bool equal_pieces = false;  // as ReduceScatter's
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int world_rank() const = 0;  // of this rank, in the communicator at the top of the family
  virtual std::chrono::milliseconds deadline() const = 0;
  // Whether ranks read each other's arenas. If not they exchange copies: reduce_scatter needs `staging`, and
  // SymmetricArena::peer() of another rank is a CheckFailure.
  virtual bool reads_peers() const { return true; }
  // Whether sums follow the reduction tree. If not (`fast`) they are in the order of the vendor's library, and of the wire
  // dtype's precision: then a tolerance takes the place of 1, and reduce_scatter needs no `staging`.
  virtual bool keeps_tree() const { return true; }

  virtual void barrier() = 0;

  // Records of `mine.size()` bytes, the same on every rank: all = the ranks' records in rank order. For
  // hashes, agreement and the like.
  virtual void all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) = 0;

  // The same, one record after the other: calls visit with each rank's, in rank order, and ends when it has seen all of
  // them. visit must not throw, nor call this communicator. `scratch` has room for all records and may be filled.
  using RecordVisitor = std::function<void(int rank, std::span<const std::byte> record)>;
  virtual void visit_records(std::span<const std::byte> mine, std::span<std::byte> scratch, const RecordVisitor& visit);

  // Collective: an arena on every rank, equal in tier and bytes. Options.rank is set here, to world_rank(). If a rank
  // has not enough memory it throws OutOfMemory, and the others CommunicationError.
  virtual std::unique_ptr<SymmetricArena> make_arena(Device& device, const ArenaOptions& options) = 0;

  // The ranges named must lie within leases of this rank's arenas. A stream is required: on the CPU the work
  // is done when the call returns; elsewhere when the stream has come to it.
  virtual void reduce_scatter(const ReduceScatter& call, Stream& stream) = 0;
  virtual void all_gather(const AllGather& call, Stream& stream) = 0;

  // Collective: a communicator of the ranks that name the same color, in order of (key, rank); none for color
  // < 0.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  // This rank gives up: the family is poisoned, and every wait of a peer ends now with an error that has
  // `reason` in it.
  virtual void abort(const std::string& reason) = 0;
};

}  // namespace shardplan
