// Adaptors that fail on purpose, through the interfaces that production uses.
//
// A Countdown counts the operations of a kind and fails one of them: first run with a countdown that never
// fails and read count(), then run again with each of 1 .. count(). One countdown may serve several adaptors
// of one rank.
#pragma once

#include <memory>
#include <string_view>

#include "runtime/forwarding_device.h"
#include "runtime/interposed_communicator.h"

namespace shardplan {

class Countdown {
 public:
  static constexpr std::uint64_t kNever = 0;
  explicit Countdown(std::uint64_t fail_at = kNever) : fail_at_(fail_at) {}
  // True for exactly one call: the fail_at-th.
  bool strikes() { return ++count_ == fail_at_; }
  std::uint64_t count() const { return count_; }

 private:
  std::uint64_t fail_at_;
  std::uint64_t count_ = 0;
};

// A failed allocation throws OutOfMemory with nothing available; a failed copy, zero, wait or kernel throws
// Error with its name and does not happen. The countdowns must outlive the device and its streams.
class FailingDevice final : public ForwardingDevice {
 public:
  FailingDevice(Device& inner, Countdown& allocations, Countdown& work)
      : ForwardingDevice(inner), allocations_(allocations), work_(work) {}
  std::unique_ptr<Memory> allocate(const MemoryRequest& request) override;
  std::unique_ptr<Stream> make_stream() override;

 private:
  Countdown& allocations_;
  Countdown& work_;
};

// A failed call throws CommunicationError that names this rank and aborts the inner communicator, so that the
// peers hear of it. Splits count too, and what is split shares the countdown, which must outlive all of them.
class FailingCommunicator final : public InterposedCommunicator {
 public:
  FailingCommunicator(std::unique_ptr<Communicator> inner, Countdown& calls)
      : InterposedCommunicator(std::move(inner)), calls_(calls) {}

 protected:
  void before(const char* operation) override;
  std::unique_ptr<Communicator> wrap(std::unique_ptr<Communicator> inner) const override;

 private:
  Countdown& calls_;
};

}  // namespace shardplan
