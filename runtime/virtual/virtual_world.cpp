#include "runtime/virtual/virtual_world.h"

#include <algorithm>
#include <utility>

#include "runtime/virtual/virtual_machine.h"

namespace shardplan {
namespace {

class Rank final : public VirtualRank {
 public:
  Rank(VirtualMachine& machine, int rank, std::unique_ptr<Communicator> communicator)
      : clock_(machine.clock(rank)),
        device_(make_virtual_device(machine, rank)),
        communicator_(std::move(communicator)) {}

  int rank() const override { return clock_.rank(); }
  Device& device() override { return *device_; }
  Communicator& communicator() override { return *communicator_; }
  double now() const override { return clock_.now(); }
  double latest() const override { return clock_.latest(); }
  const VirtualOutcome& so_far() const override { return clock_.outcome; }
  void work(Stream& stream, std::string_view what, double seconds, Bytes touched) override {
    virtual_stream(clock_, stream, what).work(what, touched, seconds);
  }
  void settle() override { clock_.stand_still_until(clock_.latest()); }

 private:
  VirtualClock& clock_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> communicator_;
};

}  // namespace

bool in_virtual_host_memory(std::uint64_t address) {
  return address >= kVirtualHostAddresses;
}

VirtualTraffic& VirtualTraffic::reads(const std::byte* at, Bytes bytes) {
  (in_virtual_host_memory(reinterpret_cast<std::uintptr_t>(at)) ? in_ : device_) += bytes;
  return *this;
}

VirtualTraffic& VirtualTraffic::writes(const std::byte* at, Bytes bytes) {
  (in_virtual_host_memory(reinterpret_cast<std::uintptr_t>(at)) ? out_ : device_) += bytes;
  return *this;
}

double VirtualTraffic::seconds(const Costs& costs) const {
  return std::max(costs.memory_seconds(device_), link_seconds(costs));
}

double VirtualTraffic::link_seconds(const Costs& costs) const {
  return in_ + out_ == Bytes{} ? 0 : costs.host_link_seconds(in_, out_);
}

VirtualWorld::VirtualWorld(VirtualOptions options) : options_(std::move(options)) {}

std::vector<VirtualOutcome> VirtualWorld::run(const std::function<void(VirtualRank&)>& body) {
  VirtualMachine machine(options_);
  auto communicators = make_virtual_communicators(machine);
  const auto rank_body = [&](int rank) {
    VirtualClock& clock = machine.clock(rank);
    try {
      Rank mine(machine, rank, std::move(communicators[static_cast<std::size_t>(rank)]));
      body(mine);
    } catch (const Killed&) {
      clock.outcome.killed = true;
    } catch (...) {
      clock.outcome.error = std::current_exception();
    }
    clock.outcome.seconds = clock.now();
  };
  machine.run(rank_body);
  std::vector<VirtualOutcome> outcomes;
  for (int rank = 0; rank < options_.ranks; ++rank) outcomes.push_back(machine.clock(rank).outcome);
  return outcomes;
}

}  // namespace shardplan
