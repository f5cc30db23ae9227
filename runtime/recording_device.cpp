#include "runtime/recording_device.h"

#include <algorithm>
#include <utility>

namespace shardplan {

class RecordingDevice::RecordingMemory final : public ForwardingMemory {
 public:
  RecordingMemory(std::unique_ptr<Memory> inner, const MemoryRequest& request, std::shared_ptr<Reports> reports)
      : ForwardingMemory(std::move(inner), request),
        reports_(std::move(reports)),
        report_((*reports_)[static_cast<std::size_t>(request.tier)]) {
    report_.held += request.bytes;
    report_.held_peak = std::max(report_.held_peak, report_.held);
    report_.high_water += request.shift_room;
  }
  ~RecordingMemory() override { report_.held -= bytes(); }

  void handed_out(std::uint64_t offset, Bytes bytes, std::string_view purpose) override {
    ForwardingMemory::handed_out(offset, bytes, purpose);
    const Bytes end = Bytes{offset} + bytes;
    report_.high_water += std::max(end, furthest_end_) - furthest_end_;
    furthest_end_ = std::max(end, furthest_end_);
    report_.live += bytes;
    report_.live_peak = std::max(report_.live_peak, report_.live);
  }
  void given_back(std::uint64_t offset, Bytes bytes) override {
    report_.live -= bytes;
    ForwardingMemory::given_back(offset, bytes);
  }

 private:
  std::shared_ptr<Reports> reports_;
  Report& report_;
  Bytes furthest_end_;
};

RecordingDevice::RecordingDevice(Device& inner) : ForwardingDevice(inner), reports_(std::make_shared<Reports>()) {}

std::unique_ptr<Memory> RecordingDevice::allocate(const MemoryRequest& request) {
  return std::make_unique<RecordingMemory>(ForwardingDevice::allocate(request), request, reports_);
}

RecordingDevice::Report RecordingDevice::report(MemoryTier tier) const {
  return (*reports_)[static_cast<std::size_t>(tier)];
}

}  // namespace shardplan
