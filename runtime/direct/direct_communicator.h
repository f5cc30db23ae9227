// The communicator of ranks that read each other's arenas: the threads of a process, or the processes of a machine.
// Nothing is staged: a rank sums and copies straight from its peers' arenas. Internal to runtime/; see
// runtime/local_communicator.h and runtime/shared/shared_communicator.h.
#pragma once

#include <memory>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/direct/direct_group.h"

namespace shardplan {

class DirectCommunicator final : public Communicator {
 public:
  DirectCommunicator(std::shared_ptr<DirectWorld> world, std::shared_ptr<std::byte> common,
                     std::vector<int> world_ranks, int member);

  int rank() const override { return group_.member(); }
  int size() const override { return group_.size(); }
  int world_rank() const override { return world().rank(); }
  std::chrono::milliseconds deadline() const override { return world().options().deadline; }

  void barrier() override;
  void all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) override;
  std::unique_ptr<SymmetricArena> make_arena(Device& device, const ArenaOptions& options) override;
  void reduce_scatter(const ReduceScatter& call, Stream& stream) override;
  void all_gather(const AllGather& call, Stream& stream) override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(const std::string& reason) override { world().poison(world_rank(), "abort", reason); }

 private:
  DirectWorld& world() const { return *group_.world(); }
  void allocate(Device& device, const ArenaOptions& options, const CollectiveCall& call, std::shared_ptr<Arena>& arena);
  template <typename Open>
  void open_from(int peer, const CollectiveCall& call, Open open);
  void check_tiling(std::uint64_t elements) const;
  void reduce_piece(const ReduceScatter& call);
  void copy_pieces(const AllGather& call);
  std::vector<int> members_of(int color) const;

  DirectGroup group_;
  std::vector<const std::byte*> inputs_;  // one per rank; here so that a collective allocates nothing
};

}  // namespace shardplan
