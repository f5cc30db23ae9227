#include "runtime/communicator.h"

namespace shardplan {

void Communicator::visit_records(std::span<const std::byte> mine, std::span<std::byte> scratch,
                                 const RecordVisitor& visit) {
  all_gather_bytes(mine, scratch);
  for (int peer = 0; peer < size(); ++peer) {
    visit(peer, scratch.subspan(static_cast<std::size_t>(peer) * mine.size(), mine.size()));
  }
}

}  // namespace shardplan
