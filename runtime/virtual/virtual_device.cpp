#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "runtime/virtual/virtual_machine.h"

namespace shardplan {
namespace {

class VirtualEvent final : public Event {
 public:
  explicit VirtualEvent(VirtualClock& clock) : clock_(clock) {}
  bool reached() const override { return time <= clock_.now(); }
  void wait() override { clock_.wait_until(time); }

  double time = 0;

 private:
  VirtualClock& clock_;
};

// How much of a device is taken; shared with its memories, which may outlive it.
struct Used {
  Bytes bytes;
};

// Addresses of a range that no byte lies behind.
std::byte* address(VirtualMachine& machine, const MemoryRequest& request) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): nobody follows it
  return reinterpret_cast<std::byte*>(machine.next_address(request.tier, request.bytes) + request.shift.count());
}

class VirtualMemory final : public Memory {
 public:
  VirtualMemory(VirtualMachine& machine, VirtualClock& clock, const MemoryRequest& request, std::shared_ptr<Used> used)
      : Memory(address(machine, request), request), machine_(machine), clock_(clock), used_(std::move(used)) {
    if (request.tier == MemoryTier::device) used_->bytes += request.bytes;
  }
  ~VirtualMemory() override {
    if (tier() == MemoryTier::device) used_->bytes -= bytes();
  }

  void handed_out(std::uint64_t offset, Bytes bytes, std::string_view purpose) override {
    VirtualTrace* trace = machine_.options().trace;
    if (trace != nullptr) trace->taken(clock_.rank(), address_of(offset), bytes, purpose, clock_.latest());
  }
  void given_back(std::uint64_t offset, Bytes bytes) override {
    VirtualTrace* trace = machine_.options().trace;
    if (trace != nullptr) trace->given_back(clock_.rank(), address_of(offset), bytes, clock_.latest());
  }

 private:
  std::uint64_t address_of(std::uint64_t offset) const { return reinterpret_cast<std::uintptr_t>(data()) + offset; }

  VirtualMachine& machine_;
  VirtualClock& clock_;
  std::shared_ptr<Used> used_;
};

class VirtualDevice final : public Device {
 public:
  VirtualDevice(VirtualMachine& machine, int rank)
      : machine_(machine), clock_(machine.clock(rank)), capacity_(machine.options().capacity) {
    for (const Fault& fault : machine.options().faults) {
      if (fault.kind == FaultKind::out_of_memory && fault.rank == rank) capacity_ = std::min(capacity_, fault.bytes);
    }
  }

  std::string name() const override { return fmt::format("virtual device of rank {}", clock_.rank()); }
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override {
    SHARDPLAN_CHECK(request.shift <= request.shift_room && request.shift_room <= request.bytes,
                    "a memory request needs shift <= shift room <= bytes");
    const Bytes available = capacity_ - used_->bytes;
    if (request.tier == MemoryTier::device && request.bytes > available) {
      if (capacity_ < machine_.options().capacity) clock_.ran_out_of_memory();
      throw OutOfMemory(std::string(shardplan::name(request.tier)), request.bytes, available);
    }
    return std::make_unique<VirtualMemory>(machine_, clock_, request, used_);
  }
  std::unique_ptr<Stream> make_stream() override {
    return std::make_unique<VirtualStream>(machine_, clock_, streams_++);
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<VirtualEvent>(clock_); }

 private:
  VirtualMachine& machine_;
  VirtualClock& clock_;
  Bytes capacity_;
  std::shared_ptr<Used> used_ = std::make_shared<Used>();
  std::size_t streams_ = 0;
};

}  // namespace

void VirtualStream::copy(std::byte* to, const std::byte* from, Bytes bytes) {
  if (bytes == Bytes{}) return;
  work("copy", 2 * bytes, VirtualTraffic().reads(from, bytes).writes(to, bytes).seconds(*machine_.options().costs));
}

void VirtualStream::zero(std::byte* at, Bytes bytes) {
  if (bytes == Bytes{}) return;
  work("zero", bytes, VirtualTraffic().writes(at, bytes).seconds(*machine_.options().costs));
}

void VirtualStream::record(Event& event) {
  static_cast<VirtualEvent&>(event).time = ready();
}

void VirtualStream::stand_still_until(double time) {
  if (is_first()) {
    clock_.stand_still_until(time);
  } else {
    time_ = std::max(time_, time);
  }
}

void VirtualStream::wait(Event& event) {
  stand_still_until(static_cast<VirtualEvent&>(event).time);
}

// A collective, and work of a client, announces itself with no bytes: whoever announced it books it.
void VirtualStream::launching(std::string_view kernel, Bytes touched) {
  if (touched == Bytes{}) {
    clock_.announced = this;
  } else {
    work(kernel, touched, machine_.options().costs->memory_seconds(touched));
  }
}

void VirtualStream::work(std::string_view what, Bytes touched, double seconds) {
  clock_.operation(false);
  stand_still_until(clock_.now());
  const double begin = time();
  const double end = begin + in_ticks(seconds * clock_.kernel_factor());
  if (is_first()) {
    clock_.work_until(end);
  } else {
    time_ = end;
  }
  clock_.reach(end);
  VirtualTrace* trace = machine_.options().trace;
  if (trace != nullptr) trace->work(clock_.rank(), number_, what, touched, begin, end);
}

void VirtualStream::communicated(const Collective& collective) {
  clock_.communicated(collective.called, collective.begin, collective.end);
  stand_still_until(collective.end);
  clock_.reach(collective.end);
  VirtualTrace* trace = machine_.options().trace;
  if (trace == nullptr) return;
  if (collective.begin > collective.called) {
    trace->waited(clock_.rank(), number_, collective.what, collective.last, collective.called, collective.begin);
  }
  trace->work(clock_.rank(), number_, collective.what, collective.bytes, collective.begin, collective.end);
}

VirtualStream& virtual_stream(VirtualClock& clock, Stream& stream, std::string_view what) {
  clock.announced = nullptr;
  stream.launching(what, Bytes{});
  SHARDPLAN_CHECK(clock.announced != nullptr, "expected a stream of this rank's virtual device");
  return *clock.announced;
}

std::unique_ptr<Device> make_virtual_device(VirtualMachine& machine, int rank) {
  return std::make_unique<VirtualDevice>(machine, rank);
}

}  // namespace shardplan
