#include "tools/simulate/offload_costs.h"

#include <algorithm>

#include "base/error.h"

namespace shardplan {
namespace {

class ArrayTraffic {
 public:
  ArrayTraffic& reads(const ConstElements& array) {
    traffic_.reads(array.data, bytes_for(array.dtype, array.elements));
    return *this;
  }
  ArrayTraffic& writes(const ConstElements& array) {
    traffic_.writes(array.data, bytes_for(array.dtype, array.elements));
    return *this;
  }
  ArrayTraffic& updates(const ConstElements& array) { return reads(array).writes(array); }
  const VirtualTraffic& sum() const { return traffic_; }

 private:
  VirtualTraffic traffic_;
};

}  // namespace

void LinkKernels::book(Stream& stream, std::string_view what, const VirtualTraffic& traffic) const {
  if (traffic.total() == Bytes{}) return;
  rank_.work(stream, what, traffic.seconds(costs_), traffic.total());
}

void LinkKernels::cast(Stream& stream, const Elements& to, const ConstElements& from) const {
  book(stream, "cast", ArrayTraffic().reads(from).writes(to).sum());
}

void LinkKernels::accumulate(Stream& stream, const Elements& sum, const ConstElements& part) const {
  book(stream, "accumulate", ArrayTraffic().reads(part).updates(sum).sum());
}

void LinkKernels::update(Stream& stream, const UpdateOptions&, const UpdateArrays& arrays) const {
  ArrayTraffic traffic;
  if (arrays.master.empty()) traffic.reads(arrays.parameter);  // beside a master it is only written
  traffic.writes(arrays.parameter).reads(arrays.gradient);
  traffic.updates(arrays.master).updates(ConstElements(DType::u16, arrays.master_rest));
  traffic.updates(arrays.first_moment).updates(arrays.second_moment).updates(arrays.ema);
  SHARDPLAN_CHECK(traffic.sum().total() == touched_by_update(arrays), "an update's traffic is what it touches");
  book(stream, "update", traffic.sum());
}

double LinkKernels::sum_of_squares(Stream& stream, const ConstElements& values) const {
  book(stream, "norm", ArrayTraffic().reads(values).sum());
  stream.synchronize();
  return 0;
}

BookedTransfers::BookedTransfers(VirtualRank& rank, Device& device, const Disk& disk)
    : rank_(rank), device_(device), disk_(disk), reads_(device.make_stream()), writes_(device.make_stream()) {}

Ticket BookedTransfers::submit(const Transfer& transfer) {
  const bool reading = transfer.direction == Direction::read;
  Stream& stream = reading ? *reads_ : *writes_;
  for (const Open& other : open_) {
    if (share_bytes(other.transfer, transfer)) stream.wait(*other.end);
  }
  const auto bytes = static_cast<double>(transfer.memory.size());
  rank_.work(stream, reading ? "read" : "write",
             bytes / (reading ? disk_.read_bytes_per_second : disk_.write_bytes_per_second),
             Bytes{transfer.memory.size()});
  ByteTier& tier = transfer.store->tier();
  if (reading) {
    tier.read(transfer.block.offset, transfer.memory);
  } else {
    tier.write(transfer.block.offset, transfer.memory);
  }
  open_.push_back({next_, transfer, device_.make_event()});
  stream.record(*open_.back().end);
  return next_++;
}

void BookedTransfers::wait(Ticket ticket) {
  const auto open = std::find_if(open_.begin(), open_.end(), [&](const Open& each) { return each.ticket == ticket; });
  SHARDPLAN_CHECK(open != open_.end(), "a transfer that is waited for is open");
  open->end->wait();
  open_.erase(open);
}

}  // namespace shardplan
