// The state that all ranks of a virtual world share. Internal to runtime/virtual.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/collective_call.h"
#include "runtime/virtual/turns.h"
#include "runtime/virtual/virtual_world.h"

namespace shardplan {

class VirtualStream;

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

  VirtualOutcome outcome{};

 private:
  void apply(const Fault& fault);

  const VirtualOptions& options_;
  int rank_;
  double now_ = 0;
  double latest_ = 0;
  double kernel_factor_ = 1;
  double link_factor_ = 1;
  std::uint64_t collectives_ = 0;
  std::vector<Fault> faults_;  // of this rank
  const Fault* message_fault_ = nullptr;
  bool killed_ = false;
};

class VirtualMachine {
 public:
  explicit VirtualMachine(const VirtualOptions& options);

  const VirtualOptions& options() const { return options_; }
  Turns& turns() { return *turns_; }
  VirtualClock& clock(int rank) { return *clocks_[static_cast<std::size_t>(rank)]; }
  std::uint64_t next_arena_id() { return next_arena_id_++; }
  std::uint64_t next_address(Bytes bytes);

  // The first failure stays; whoever waits is woken, at `time` at the earliest.
  void poison(int world_rank, const std::string& operation, const std::string& problem, double time);
  void throw_if_poisoned(int rank);
  bool poisoned() const { return failure_.has_value(); }

  // A rank waits for its peers in `operation`; `missing` tells one that has not come.
  struct Waiting {
    std::string operation;
    double since = 0;
    std::function<int()> missing;
  };
  void wait(int rank, Waiting waiting);
  void wake(int rank);
  // Nobody can go on: the wait that ends first ends at its deadline.
  void expire();

 private:
  struct Failure {
    int rank;
    std::string operation;
    std::string problem;
    double time;
  };

  VirtualOptions options_;
  std::unique_ptr<Turns> turns_;
  std::vector<std::unique_ptr<VirtualClock>> clocks_;
  std::map<int, Waiting> waiting_;
  std::optional<Failure> failure_;
  std::uint64_t next_arena_id_ = 0;
  std::uint64_t next_address_ = std::uint64_t{1} << 20;
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
  void synchronize() override { clock_.wait_until(time_); }
  void launching(std::string_view kernel, Bytes touched) override;

  void work(std::string_view what, Bytes touched, double seconds);
  // When it can begin something new.
  double ready() const { return std::max(time_, clock_.now()); }
  // A collective from `begin` to `end`, for which this stream was ready.
  void communicated(std::string_view what, Bytes bytes, double begin, double end);

 private:
  void stand_still_until(double time);

  VirtualMachine& machine_;
  VirtualClock& clock_;
  std::size_t number_;
  double time_ = 0;
};

// The stream itself. CheckFailure for one that another object stands before, or that is of another device.
VirtualStream& virtual_stream(Stream& stream);

std::unique_ptr<Device> make_virtual_device(VirtualMachine& machine, int rank);
// Of all ranks: the world.
std::vector<std::unique_ptr<Communicator>> make_virtual_communicators(VirtualMachine& machine);

}  // namespace shardplan
