#include "runtime/cuda/nccl_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "runtime/collective_call.h"
#include "runtime/collective_checks.h"
#include "runtime/cuda/error.h"
#include "runtime/cuda/records.h"
#include "runtime/cuda/reduction.h"

namespace shardplan::cuda {
namespace {

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::f16:
      return ncclFloat16;
    default:
      break;
  }
  SHARDPLAN_CHECK(false, "a dtype that cannot be summed");
  return ncclFloat32;
}

std::byte* bytes_at(const ArenaPlace& place) {
  return place.arena->data() + place.offset;
}

// The elements of a piece in round `round`, `each` of them in every round.
Piece part_of(const Piece& piece, std::uint64_t round, std::uint64_t each) {
  const std::uint64_t begin = std::min(piece.count, round * each);
  return {piece.first + begin, std::min(each, piece.count - begin)};
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<NcclFamily> family, const ncclUniqueId& id, std::vector<int> world_ranks, int rank,
                   bool fast, Bytes fast_buffer)
      : family_(std::move(family)),
        world_ranks_(std::move(world_ranks)),
        rank_(rank),
        fast_(fast),
        link_(family_, id, rank, size()),
        records_(link_, world_ranks_, rank),
        pieces_(world_ranks_.size()),
        buffer_free_(family_->device()) {
    if (fast) buffer_ = CudaDevice(family_->device()).allocate({.bytes = std::max(fast_buffer, 256_B)});
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(world_ranks_.size()); }
  int world_rank() const override { return family_->world_rank(); }
  std::chrono::milliseconds deadline() const override { return family_->deadline(); }
  bool reads_peers() const override { return false; }
  bool keeps_tree() const override { return !fast_; }

  void barrier() override { records_.all_gather("barrier", {}, {}); }
  void all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void visit_records(std::span<const std::byte> mine, std::span<std::byte> scratch,
                     const RecordVisitor& visit) override;
  std::unique_ptr<SymmetricArena> make_arena(Device& device, const ArenaOptions& options) override;
  void reduce_scatter(const ReduceScatter& call, Stream& stream) override;
  void all_gather(const AllGather& call, Stream& stream) override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(const std::string& reason) override { family_->poison(world_rank(), "abort", reason); }

 private:
  CudaStream& stream_here(Stream& stream) const;
  bool find_pieces(const Piece& mine, std::uint64_t elements);
  std::uint64_t rounds_of(std::uint64_t each) const;
  void canonical(const ReduceScatter& call, CudaStream& stream);
  void exchange_round(const ReduceScatter& call, std::uint64_t round, std::uint64_t each, CudaStream& stream);
  void fast(const ReduceScatter& call, bool even, CudaStream& stream);
  void reduce_round(const ReduceScatter& call, std::uint64_t round, std::uint64_t each, CudaStream& stream);
  void sum_up(const ReduceScatter& call, std::uint64_t done, std::uint64_t elements, StagedSum sum,
              CudaStream& stream) const;

  const std::shared_ptr<NcclFamily> family_;
  const std::vector<int> world_ranks_;
  const int rank_;
  const bool fast_;
  NcclLink link_;
  RecordExchange records_;
  std::vector<Piece> pieces_;       // of the call that is being made; here so that a collective allocates nothing
  std::unique_ptr<Memory> buffer_;  // fast mode
  CudaEvent buffer_free_;           // by the last call that used it, on whichever stream
};

void NcclCommunicator::all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) {
  check_records(mine, all, rank(), size());
  records_.all_gather("all_gather_bytes", mine, all);
}

// `scratch` may be memory of the GPU, which the host cannot touch: short records need none.
void NcclCommunicator::visit_records(std::span<const std::byte> mine, std::span<std::byte> scratch,
                                     const RecordVisitor& visit) {
  if (mine.size() > RecordExchange::kInline) return Communicator::visit_records(mine, scratch, visit);
  records_.visit("all_gather_bytes", mine, visit);
}

std::unique_ptr<SymmetricArena> NcclCommunicator::make_arena(Device& device, const ArenaOptions& options) {
  struct Answer {
    std::uint64_t made = 0;
    std::uint64_t tier = 0;
    std::uint64_t bytes = 0;
  };
  family_->throw_if_poisoned();
  const Answer mine{1, static_cast<std::uint64_t>(options.tier), options.bytes.count()};
  Answer own = mine;
  std::exception_ptr refused;
  std::unique_ptr<Arena> arena;
  try {
    ArenaOptions shifted = options;
    shifted.rank = world_rank();
    arena = std::make_unique<Arena>(device, shifted);
  } catch (...) {
    refused = std::current_exception();
    own.made = 0;
  }
  int failed = -1;
  std::string problem;
  const auto look = [&](int member, std::span<const std::byte> record) {
    Answer theirs;
    std::memcpy(&theirs, record.data(), sizeof theirs);
    if (!problem.empty()) return;
    if (theirs.made == 0) problem = "could not allocate its arena";
    if (theirs.tier != mine.tier || theirs.bytes != mine.bytes) problem = "asks for an arena of another tier or size";
    if (!problem.empty()) failed = world_ranks_[static_cast<std::size_t>(member)];
  };
  records_.visit("make_arena", std::as_bytes(std::span(&own, 1)), std::ref(look));
  if (!problem.empty()) family_->poison(failed, "make_arena", fmt::format("rank {} {}", failed, problem));
  if (refused) std::rethrow_exception(refused);
  family_->throw_if_poisoned();
  auto group = std::make_shared<ArenaGroup>(family_->next_arena_id(), std::vector<int>{world_rank()});
  group->join(world_rank(), std::move(arena));
  return std::make_unique<SymmetricArena>(std::move(group), world_rank());
}

// All ranks' pieces into pieces_. True if they are equal ones, which this rank can tell from its own.
bool NcclCommunicator::find_pieces(const Piece& mine, std::uint64_t elements) {
  const auto ranks = static_cast<std::uint64_t>(size());
  const bool even = mine.first == mine.count * static_cast<std::uint64_t>(rank_) && elements == mine.count * ranks;
  if (even) {
    for (std::uint64_t peer = 0; peer < ranks; ++peer) pieces_[peer] = {peer * mine.count, mine.count};
    return true;
  }
  records_.all_gather("pieces", std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(pieces_)));
  Tiling tiling;
  for (std::size_t peer = 0; peer < pieces_.size(); ++peer) tiling.add(world_ranks_[peer], pieces_[peer]);
  tiling.ends_at(elements);
  return false;
}

// How many rounds of `each` elements the longest piece takes.
std::uint64_t NcclCommunicator::rounds_of(std::uint64_t each) const {
  std::uint64_t longest = 0;
  for (const Piece& piece : pieces_) longest = std::max(longest, piece.count);
  return divide_up(longest, each);
}

CudaStream& NcclCommunicator::stream_here(Stream& stream) const {
  CudaStream& cuda = cuda_stream(stream);
  SHARDPLAN_CHECK(cuda.device() == family_->device(), "a stream of another GPU than the communicator's");
  return cuda;
}

void NcclCommunicator::reduce_scatter(const ReduceScatter& call, Stream& stream) {
  family_->throw_if_poisoned();
  check_call(call);
  if (!fast_) check_staging(call, size());
  stream.launching("reduce_scatter", Bytes{});
  CudaStream& cuda = stream_here(stream);
  const OnDevice on(cuda.device());
  records_.note(describe_call(call));
  if (call.elements == 0) return;
  const bool even = find_pieces(call.mine, call.elements);
  if (fast_) {
    fast(call, even, cuda);
  } else {
    canonical(call, cuda);
  }
}

// Elements `done` to `done + elements` of this rank's piece, into the output.
void NcclCommunicator::sum_up(const ReduceScatter& call, std::uint64_t done, std::uint64_t elements, StagedSum sum,
                              CudaStream& stream) const {
  sum.wire = call.wire;
  sum.scale = call.scale;
  sum.add = call.output.mode == ReductionOutput::Mode::add;
  sum.output_dtype = call.output.dtype;
  sum.output = bytes_at(call.output.place) + done * element_bytes(call.output.dtype);
  launch_sum(stream.handle(), sum, elements);
}

void NcclCommunicator::canonical(const ReduceScatter& call, CudaStream& stream) {
  const std::uint64_t width = element_bytes(call.wire);
  const auto peers = static_cast<std::uint64_t>(size()) - 1;
  std::uint64_t each = std::max<std::uint64_t>(call.mine.count, 1);
  if (peers > 0) {
    each = call.staging_bytes / peers / width;
    if (each > kVector) each -= each % kVector;  // so that all contributions lie on a vector's boundary
  }
  const std::uint64_t rounds = rounds_of(each);
  for (std::uint64_t round = 0; round < rounds; ++round) {
    if (peers > 0) exchange_round(call, round, each, stream);
    const Piece mine = part_of(call.mine, round, each);
    sum_up(call, mine.first - call.mine.first, mine.count,
           {.own = bytes_at(call.input) + mine.first * width,
            .staged = peers > 0 ? bytes_at(call.staging) : nullptr,
            .stride = each * width,
            .own_rank = rank_,
            .ranks = size(),
            .group_size = call.group_size == kWholeGroup ? size() : call.group_size},
           stream);
  }
}

// The others' parts of mine into the staging, my parts of theirs to them. Rounds share the staging: a stream's order
// keeps them apart.
void NcclCommunicator::exchange_round(const ReduceScatter& call, std::uint64_t round, std::uint64_t each,
                                      CudaStream& stream) {
  const std::uint64_t width = element_bytes(call.wire);
  const std::byte* input = bytes_at(call.input);
  const std::uint64_t mine = part_of(call.mine, round, each).count;
  const auto enqueue = [&](ncclComm_t comm) {
    std::byte* to = bytes_at(call.staging);
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank_) continue;
      const Piece theirs = part_of(pieces_[static_cast<std::size_t>(peer)], round, each);
      if (theirs.count > 0) {
        link_.take(
            nccl().Send(input + theirs.first * width, theirs.count * width, ncclUint8, peer, comm, stream.handle()));
      }
      if (mine > 0) link_.take(nccl().Recv(to, mine * width, ncclUint8, peer, comm, stream.handle()));
      to += each * width;
    }
  };
  link_.queue("reduce_scatter", stream.handle(), std::ref(enqueue));
}

void NcclCommunicator::fast(const ReduceScatter& call, bool even, CudaStream& stream) {
  const std::uint64_t width = element_bytes(call.wire);
  const bool straight = even && call.wire == call.output.dtype && call.output.mode == ReductionOutput::Mode::store;
  if (straight) {
    std::byte* output = bytes_at(call.output.place);
    const auto enqueue = [&](ncclComm_t comm) {
      link_.take(nccl().ReduceScatter(bytes_at(call.input), output, call.mine.count, nccl_type(call.wire), ncclSum,
                                      comm, stream.handle()));
    };
    if (call.mine.count > 0) link_.queue("reduce_scatter", stream.handle(), std::ref(enqueue));
    if (call.scale != 1.0F) sum_up(call, 0, call.mine.count, {.own = output}, stream);
    return;
  }
  const std::uint64_t each = buffer_->bytes().count() / width;
  const std::uint64_t rounds = rounds_of(each);
  stream.wait(buffer_free_);
  for (std::uint64_t round = 0; round < rounds; ++round) {
    reduce_round(call, round, each, stream);
    const Piece mine = part_of(call.mine, round, each);
    sum_up(call, mine.first - call.mine.first, mine.count, {.own = buffer_->data()}, stream);
  }
  stream.record(buffer_free_);
}

// Each rank's part, summed by NCCL to that rank.
void NcclCommunicator::reduce_round(const ReduceScatter& call, std::uint64_t round, std::uint64_t each,
                                    CudaStream& stream) {
  const std::uint64_t width = element_bytes(call.wire);
  const std::byte* input = bytes_at(call.input);
  const auto enqueue = [&](ncclComm_t comm) {
    for (int peer = 0; peer < size(); ++peer) {
      const Piece part = part_of(pieces_[static_cast<std::size_t>(peer)], round, each);
      if (part.count == 0) continue;
      link_.take(nccl().Reduce(input + part.first * width, buffer_->data(), part.count, nccl_type(call.wire), ncclSum,
                               peer, comm, stream.handle()));
    }
  };
  link_.queue("reduce_scatter", stream.handle(), std::ref(enqueue));
}

void NcclCommunicator::all_gather(const AllGather& call, Stream& stream) {
  family_->throw_if_poisoned();
  check_call(call);
  stream.launching("all_gather", Bytes{});
  CudaStream& cuda = stream_here(stream);
  const OnDevice on(cuda.device());
  records_.note(describe_call(call));
  if (call.elements == 0) return;
  const bool even = find_pieces(call.mine, call.elements);
  const std::uint64_t width = element_bytes(call.dtype);
  const std::byte* input = bytes_at(call.input);
  std::byte* output = bytes_at(call.output);
  const auto gather = [&](ncclComm_t comm) {
    link_.take(nccl().AllGather(input, output, call.mine.count * width, ncclUint8, comm, cuda.handle()));
  };
  const auto broadcast = [&](ncclComm_t comm) {
    for (int peer = 0; peer < size(); ++peer) {
      const Piece& piece = pieces_[static_cast<std::size_t>(peer)];
      if (piece.count == 0) continue;
      std::byte* to = output + piece.first * width;
      link_.take(
          nccl().Broadcast(peer == rank_ ? input : to, to, piece.count * width, ncclUint8, peer, comm, cuda.handle()));
    }
  };
  if (even) {
    link_.queue("all_gather", cuda.handle(), std::ref(gather));
  } else {
    link_.queue("all_gather", cuda.handle(), std::ref(broadcast));
  }
}

// The members of a color in order of (key, rank); the first one's id is what they meet by.
std::unique_ptr<Communicator> NcclCommunicator::split(int color, int key) {
  struct Choice {
    int color = 0;
    int key = 0;
  };
  const Choice mine{color, key};
  std::vector<Choice> choices(world_ranks_.size());
  records_.all_gather("split", std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(choices)));
  std::vector<std::size_t> members;
  for (std::size_t peer = 0; peer < choices.size(); ++peer) {
    if (choices[peer].color == color) members.push_back(peer);
  }
  std::stable_sort(members.begin(), members.end(),
                   [&](std::size_t a, std::size_t b) { return choices[a].key < choices[b].key; });

  ncclUniqueId id{};
  const bool first = color >= 0 && members.front() == static_cast<std::size_t>(rank_);
  if (first) {
    const ncclResult_t result = nccl().GetUniqueId(&id);
    if (result != ncclSuccess) {
      family_->poison(world_rank(), "split", nccl().GetErrorString(result));
      family_->throw_failure();
    }
  }
  std::vector<ncclUniqueId> ids(world_ranks_.size());
  records_.all_gather("split", std::as_bytes(std::span(&id, 1)), std::as_writable_bytes(std::span(ids)));
  if (color < 0) return nullptr;
  std::vector<int> world_ranks;
  world_ranks.reserve(members.size());
  for (const std::size_t member : members) world_ranks.push_back(world_ranks_[member]);
  const auto place = std::find(members.begin(), members.end(), static_cast<std::size_t>(rank_)) - members.begin();
  return std::make_unique<NcclCommunicator>(family_, ids[members.front()], std::move(world_ranks),
                                            static_cast<int>(place), fast_, buffer_ ? buffer_->bytes() : Bytes{});
}

// Rank 0's.
ncclUniqueId agreed_id(const NcclOptions& options) {
  ncclUniqueId id{};
  if (options.rank == 0) {
    const ncclResult_t result = nccl().GetUniqueId(&id);
    if (result != ncclSuccess) {
      throw CommunicationError(0, "connect", options.deadline, fmt::format("NCCL: {}", nccl().GetErrorString(result)));
    }
  }
  if (options.size == 1) return id;
  SHARDPLAN_CHECK(options.all_gather != nullptr, "NCCL needs an all-gather by which its ranks find each other");
  std::vector<ncclUniqueId> ids(static_cast<std::size_t>(options.size));
  options.all_gather(std::as_bytes(std::span(&id, 1)), std::as_writable_bytes(std::span(ids)));
  return ids.front();
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(int device, const NcclOptions& options) {
  SHARDPLAN_CHECK(options.size >= 1 && options.rank >= 0 && options.rank < options.size,
                  "a rank is one of its communicator's");
  const OnDevice on(CudaDevice(device).index());
  const ncclUniqueId id = agreed_id(options);
  std::vector<int> world_ranks(static_cast<std::size_t>(options.size));
  std::iota(world_ranks.begin(), world_ranks.end(), 0);
  auto family = std::make_shared<NcclFamily>(device, options.rank, options.deadline);
  return std::make_unique<NcclCommunicator>(std::move(family), id, std::move(world_ranks), options.rank, options.fast,
                                            options.fast_buffer);
}

}  // namespace shardplan::cuda
