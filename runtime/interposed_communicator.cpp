#include "runtime/interposed_communicator.h"

namespace shardplan {

void InterposedCommunicator::barrier() {
  before("barrier");
  inner_->barrier();
}

void InterposedCommunicator::all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) {
  before("all_gather_bytes");
  inner_->all_gather_bytes(mine, all);
}

void InterposedCommunicator::visit_records(std::span<const std::byte> mine, std::span<std::byte> scratch,
                                           const RecordVisitor& visit) {
  before("visit_records");
  inner_->visit_records(mine, scratch, visit);
}

std::unique_ptr<SymmetricArena> InterposedCommunicator::make_arena(Device& device, const ArenaOptions& options) {
  before("make_arena");
  return inner_->make_arena(device, options);
}

void InterposedCommunicator::reduce_scatter(const ReduceScatter& call, Stream& stream) {
  before("reduce_scatter");
  inner_->reduce_scatter(call, stream);
}

void InterposedCommunicator::all_gather(const AllGather& call, Stream& stream) {
  before("all_gather");
  inner_->all_gather(call, stream);
}

std::unique_ptr<Communicator> InterposedCommunicator::split(int color, int key) {
  before("split");
  auto part = inner_->split(color, key);
  return part ? wrap(std::move(part)) : nullptr;
}

}  // namespace shardplan
