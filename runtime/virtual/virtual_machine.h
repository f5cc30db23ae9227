// The state that all ranks of a virtual world share. Internal to runtime/virtual.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/virtual/step_parts.h"
#include "runtime/virtual/transfers.h"
#include "runtime/virtual/turns.h"
#include "runtime/virtual/virtual_time.h"
#include "runtime/virtual/virtual_world.h"

namespace shardplan {

class VirtualStream;

// Of host memory; a device's are below.
inline constexpr std::uint64_t kVirtualHostAddresses = std::uint64_t{1} << 62;

// A rank's clock and its faults.
class VirtualClock {
 public:
  VirtualClock(const VirtualOptions& options, int rank);

  int rank() const { return rank_; }
  double now() const { return now_; }
  void wait_until(double time) { reach(now_ = std::max(now_, time)); }
  // The end of the work that the rank has started, on any stream.
  double latest() const { return latest_; }
  void reach(double time) { latest_ = std::max(latest_, time); }

  // Counts an operation, and does what is to happen at it.
  void operation(bool collective);
  double kernel_factor() const { return kernel_factor_; }
  double link_factor() const { return link_factor_; }
  // The fault that this rank's present collective has, if any: drop or corrupt.
  const Fault* message_fault() const { return message_fault_; }
  bool killed() const { return killed_; }
  // The fault by which the device has less memory has made it run out.
  void ran_out_of_memory();

  // A collective of this rank, on a stream or on the host.
  void communicated(double called, double begin, double end);
  // The first stream stands still from where it is.
  void stand_still_until(double time);
  // It works from where it is.
  void work_until(double time);
  double first_stream() const { return first_stream_; }

  // Of the next collective: where Stream::launching arrived, through whatever adaptors stand before it.
  VirtualStream* announced = nullptr;
  VirtualOutcome outcome{};

 private:
  void apply(std::size_t fault);

  const VirtualOptions& options_;
  int rank_;
  double now_ = 0;
  double latest_ = 0;
  double first_stream_ = 0;
  double kernel_factor_ = 1;
  double link_factor_ = 1;
  CollectiveTimes collectives_;
  std::vector<std::size_t> faults_;  // of this rank
  const Fault* message_fault_ = nullptr;
  bool killed_ = false;
};

// Where ranks meet, for those who wait there.
class MeetingPlace {
 public:
  virtual ~MeetingPlace() = default;
  virtual int missing() const = 0;  // a rank that has not come
};

class VirtualMachine {
 public:
  explicit VirtualMachine(const VirtualOptions& options);

  const VirtualOptions& options() const { return options_; }
  VirtualClock& clock(int rank) { return *clocks_[static_cast<std::size_t>(rank)]; }
  std::uint64_t next_arena_id() { return next_arena_id_++; }
  std::uint64_t next_address(MemoryTier tier, Bytes bytes);
  void run(const Turns::Body& body);

  // The first failure stays; whoever waits for peers is woken, at `time` at the earliest.
  void poison(int world_rank, const std::string& operation, const std::string& problem, double time);
  void throw_if_poisoned(int rank);

  // The rank waits until it is woken. Where it waits at a place, since its time `since`, for peers to come to
  // `operation`, a failure wakes it too, and so does the deadline.
  void wait(int rank, const char* operation, double since, const MeetingPlace* place);
  // The peers have come: the rank waits no longer for them.
  void met(int rank) { waits_[static_cast<std::size_t>(rank)].place = nullptr; }
  void wake(int rank) { turns_->wake(rank); }
  Transfers& transfers() { return transfers_; }

 private:
  struct Failure {
    int rank;
    std::string operation;
    std::string problem;
    double time;
  };
  struct Wait {
    const char* operation = "";
    double since = 0;
    const MeetingPlace* place = nullptr;  // of a rank that waits for peers
  };

  void go_on();
  void expire();

  VirtualOptions options_;
  std::unique_ptr<Turns> turns_;
  std::vector<std::unique_ptr<VirtualClock>> clocks_;
  std::vector<Wait> waits_;  // by rank
  Transfers transfers_;
  std::optional<Failure> failure_;
  std::uint64_t next_arena_id_ = 0;
  std::uint64_t next_address_ = std::uint64_t{1} << 20;
  std::uint64_t next_host_address_ = kVirtualHostAddresses;
};

// A rank that a fault has killed leaves its body with this; nobody catches it.
struct Killed {};

class VirtualStream final : public Stream {
 public:
  VirtualStream(VirtualMachine& machine, VirtualClock& clock, std::size_t number)
      : machine_(machine), clock_(clock), number_(number) {}

  void copy(std::byte* to, const std::byte* from, Bytes bytes) override;
  void zero(std::byte* at, Bytes bytes) override;
  void record(Event& event) override;
  void wait(Event& event) override;
  void synchronize() override { clock_.wait_until(time()); }
  void launching(std::string_view kernel, Bytes touched) override;

  void work(std::string_view what, Bytes touched, double seconds);
  // When it can begin something new.
  double ready() const { return std::max(time(), clock_.now()); }
  // A collective that it was ready for at `called`, that began when the last rank, `last`, had come, and ended.
  struct Collective {
    std::string_view what;
    Bytes bytes;
    double called;
    double begin;
    double end;
    int last;
  };
  void communicated(const Collective& collective);

 private:
  bool is_first() const { return number_ == 0; }
  double time() const { return is_first() ? clock_.first_stream() : time_; }
  void stand_still_until(double time);

  VirtualMachine& machine_;
  VirtualClock& clock_;
  std::size_t number_;
  double time_ = 0;  // but of the first stream: that is the clock's
};

// Where work that is announced on `stream` arrives. CheckFailure where that is not a stream of this rank's device.
VirtualStream& virtual_stream(VirtualClock& clock, Stream& stream, std::string_view what);

std::unique_ptr<Device> make_virtual_device(VirtualMachine& machine, int rank);
// Of all ranks: the world.
std::vector<std::unique_ptr<Communicator>> make_virtual_communicators(VirtualMachine& machine);

}  // namespace shardplan
