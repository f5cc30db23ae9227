// A device as hard to use as a GPU, in host memory: what is put on a stream happens as late as it may, and the host
// cannot touch the device's memory at all.
//
// Work runs when somebody waits for it (synchronize, an event, a result), and then no more of it than the streams' order
// and their events demand. Addresses of tier device are pages without access: a host that follows one is killed by a
// signal. So a missing event, a missing synchronize and a byte touched from the wrong side each fail a test that a
// device which executes inline lets pass.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "runtime/communicator.h"
#include "runtime/cpu_device.h"
#include "shard/kernels/kernels.h"

namespace shardplan::test {

class LazyDevice final : public Device {
 public:
  std::string name() const override { return "lazy"; }
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override;
  std::unique_ptr<Stream> make_stream() override;
  std::unique_ptr<Event> make_event() override;

  // Where the bytes of a device address really are; other addresses stay as they are.
  std::byte* real(const std::byte* address) const;

 private:
  friend class LazyMemory;
  friend class LazyCommunicator;
  CpuDevice cpu_;
  std::map<const std::byte*, std::pair<std::uint64_t, std::byte*>> ranges_;  // by first address: bytes, where they are
  std::byte* next_ = nullptr;  // the bytes behind the next allocation, if somebody else has them
};

class LazyStream final : public Stream {
 public:
  explicit LazyStream(LazyDevice& device) : device_(device) {}
  void copy(std::byte* to, const std::byte* from, Bytes bytes) override;
  void zero(std::byte* at, Bytes bytes) override;
  void record(Event& event) override;
  void wait(Event& event) override;
  void synchronize() override { run_until(put_); }
  void launching(std::string_view, Bytes) override {}

  void put(std::function<void()> work);
  std::uint64_t position() const { return put_; }
  // Runs the first `count` works that were ever put here, but for those that have run.
  void run_until(std::uint64_t count);
  bool has_run(std::uint64_t count) const { return done_ >= count; }
  LazyDevice& device() const { return device_; }

 private:
  LazyDevice& device_;
  std::deque<std::function<void()>> works_;
  std::uint64_t put_ = 0;
  std::uint64_t done_ = 0;
};

// The CPU's kernels, on lazy streams.
const Kernels& lazy_kernels();

// Collectives of `inner` (whose ranks are threads), on lazy streams of `device`. Both must outlive it.
std::unique_ptr<Communicator> make_lazy_communicator(Communicator& inner, LazyDevice& device);

}  // namespace shardplan::test
