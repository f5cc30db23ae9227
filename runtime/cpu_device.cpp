#include "runtime/cpu_device.h"

#include <sanitizer/asan_interface.h>
#include <unistd.h>

#include <cstring>

#include "base/error.h"

namespace shardplan {
namespace {

class CpuMemory final : public Memory {
 public:
  CpuMemory(HostMapping mapping, const MemoryRequest& request)
      : Memory(mapping.data() + request.shift.count(), request), mapping_(std::move(mapping)) {
    ASAN_POISON_MEMORY_REGION(mapping_.data(), mapping_.bytes().count());
  }
  // The address range may serve others afterwards, and the shadow outlives the mapping.
  ~CpuMemory() override { ASAN_UNPOISON_MEMORY_REGION(mapping_.data(), mapping_.bytes().count()); }

  void handed_out([[maybe_unused]] std::uint64_t offset, [[maybe_unused]] Bytes bytes, std::string_view) override {
    ASAN_UNPOISON_MEMORY_REGION(data() + offset, bytes.count());
  }
  void given_back([[maybe_unused]] std::uint64_t offset, [[maybe_unused]] Bytes bytes) override {
    ASAN_POISON_MEMORY_REGION(data() + offset, bytes.count());
  }
  std::optional<SharedHandle> shared_handle() const override {
    if (mapping_.descriptor() < 0) return std::nullopt;
    return SharedHandle{.process = getpid(),
                        .descriptor = mapping_.descriptor(),
                        .bytes = mapping_.bytes().count(),
                        .offset = static_cast<std::uint64_t>(data() - mapping_.data())};
  }

 private:
  HostMapping mapping_;
};

class CpuEvent final : public Event {
 public:
  bool reached() const override { return true; }
  void wait() override {}
};

class CpuStream final : public Stream {
 public:
  void copy(std::byte* to, const std::byte* from, Bytes bytes) override {
    if (bytes.count() != 0) std::memcpy(to, from, bytes.count());
  }
  void zero(std::byte* at, Bytes bytes) override {
    if (bytes.count() != 0) std::memset(at, 0, bytes.count());
  }
  void record(Event&) override {}
  void wait(Event&) override {}
  void synchronize() override {}
  void launching(std::string_view, Bytes) override {}
};

}  // namespace

std::unique_ptr<Memory> CpuDevice::allocate(const MemoryRequest& request) {
  SHARDPLAN_CHECK(request.shift <= request.shift_room && request.shift_room <= request.bytes,
                  "a memory request needs shift <= shift room <= bytes");
  const std::lock_guard lock(turn_);
  return std::make_unique<CpuMemory>(HostMapping(request.bytes, shardplan::name(request.tier), pages_), request);
}

std::unique_ptr<Stream> CpuDevice::make_stream() {
  return std::make_unique<CpuStream>();
}

std::unique_ptr<Event> CpuDevice::make_event() {
  return std::make_unique<CpuEvent>();
}

}  // namespace shardplan
