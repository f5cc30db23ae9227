// Neighbours that are processes: memory is offered as a descriptor, and mapped. Internal to runtime/.
#pragma once

#include <sys/types.h>

#include <vector>

#include "runtime/direct/neighbours.h"
#include "runtime/host_memory.h"

namespace shardplan {

class ProcessNeighbours final : public Neighbours {
 public:
  // Of rank r, processes[r]. Throws IoError if one of them is not there.
  explicit ProcessNeighbours(const std::vector<pid_t>& processes);

  CommonMemory make_common(Bytes bytes) override { return make_common_memory(bytes); }
  std::shared_ptr<std::byte> open_common(int world_rank, const Offer& offer) override;
  Offer offer_arena(const std::shared_ptr<Arena>& arena, const Device& device) override;
  void open_arena(int world_rank, const Offer& offer, ArenaGroup& group) override;
  int life_of(int world_rank) const override { return lives_[static_cast<std::size_t>(world_rank)].get(); }
  bool processes() const override { return true; }

  static CommonMemory make_common_memory(Bytes bytes);

 private:
  std::vector<Descriptor> lives_;
};

}  // namespace shardplan
