// A virtual machine: ranks that book bytes and time instead of holding and spending them.
//
//   VirtualWorld world({.ranks = 1024, .costs = &costs});
//   std::vector<VirtualOutcome> outcomes = world.run([&](VirtualRank& rank) {
//     ZeroOptimizer optimizer(catalog, plan, rank.device(), {.world = &rank.communicator(), ...}, options);
//     ...
//   });
//
// Memory has addresses, sizes and lifetimes, and no bytes behind it: nothing may be read or written there.
// Kernels, copies and collectives cost what `costs` says. Time is virtual: each rank has a clock for itself (the host)
// and one for each stream; an event carries the time of its stream; a collective starts when the last rank's stream has
// come to it. Collectives that move bytes at the same time share links (runtime/virtual/transfers.h).
//
// Where a rank's time went is told for its first stream, on which it computes: VirtualOutcome has four parts that add
// up to that stream's time exactly.
//
// Order. One rank runs at a time, from one collective to the next, in an order that depends on the calls alone, so
// a run is deterministic: the same body, options and faults give the same trace. Ranks are fibers (Boost.Context) on
// one thread; or, where a tool cannot follow those (sanitizers), threads that pass a baton in the same order. A rank
// must not wait for a peer inside of a catch block.
//
// Failures. The contract is Communicator's, in virtual time: a rank that does not come ends the wait of the others at
// their deadline. Faults are injected by operation: the n-th kernel, copy or collective of a rank.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/virtual/costs.h"

namespace shardplan {

enum class FaultKind : std::uint8_t {
  kill,           // the rank is gone before its operation, without a word
  stall,          // the rank does nothing for `seconds` before its operation
  slow_rank,      // from the operation on, its kernels take `factor` times as long
  slow_link,      // from the operation on, collectives with the rank take `factor` times as long
  drop,           // its message of the operation does not arrive
  corrupt,        // its message of the operation arrives damaged, which its receivers see
  out_of_memory,  // the device has `bytes` in all
};
std::string_view name(FaultKind kind);

struct Fault {
  FaultKind kind = FaultKind::kill;
  int rank = 0;
  std::uint64_t operation = 0;  // from 1; drop and corrupt: of the rank's collectives alone
  double seconds = 0;
  double factor = 1;
  Bytes bytes{};
  bool operator==(const Fault&) const = default;
};

// What happened, told as it happens; times in seconds from the start of the run.
class VirtualTrace {
 public:
  virtual ~VirtualTrace() = default;
  // Streams of a rank are numbered in the order they are made.
  virtual void work(int rank, std::size_t stream, std::string_view what, Bytes bytes, double begin, double end) = 0;
  // Memory that is handed out and given back, at the time that the rank's work has come to. No two memories of a rank share
  // addresses.
  virtual void taken(int rank, std::uint64_t address, Bytes bytes, std::string_view purpose, double time) = 0;
  virtual void given_back(int rank, std::uint64_t address, Bytes bytes, double time) = 0;
  // A rank had come to the collective `what`, and waited for its peers, the last of which was rank `last`.
  virtual void waited(int rank, std::size_t stream, std::string_view what, int last, double begin, double end) = 0;
  virtual void fault(const Fault& fault, double time) = 0;
};

// Whether a virtual device has given this address for host memory, which its kernels reach over a link.
bool in_virtual_host_memory(std::uint64_t address);

// What one kernel or copy reads and writes, wherever it lies: over the link at the same time as in the device's memory.
class VirtualTraffic {
 public:
  VirtualTraffic& reads(const std::byte* at, Bytes bytes);
  VirtualTraffic& writes(const std::byte* at, Bytes bytes);
  Bytes total() const { return device_ + in_ + out_; }
  double seconds(const Costs& costs) const;
  double link_seconds(const Costs& costs) const;

 private:
  Bytes device_;
  Bytes in_;
  Bytes out_;
};

// What a build with a sanitizer has chosen (SHARDPLAN_VIRTUAL_RANKS=threads).
bool virtual_ranks_are_threads();

struct VirtualOptions {
  int ranks = 1;
  int ranks_per_node = 8;
  int ranks_per_adapter = 1;   // neighbours that share a link to the network
  Bytes capacity{UINT64_MAX};  // of each device
  const Costs* costs = nullptr;
  std::chrono::milliseconds deadline{60'000};  // virtual
  std::vector<Fault> faults{};
  VirtualTrace* trace = nullptr;
  bool threads = virtual_ranks_are_threads();  // instead of fibers
  std::size_t stack_kib = 256;                 // of a fiber
};

struct VirtualOutcome {
  std::exception_ptr error;  // that ended the rank
  bool killed = false;
  std::vector<std::size_t> faults{};  // of VirtualOptions::faults, those of this rank that happened
  double seconds = 0;                 // the rank's own clock at its end
  Bytes sent{};                       // to peers, in collectives on streams: payload
  double sent_over_network = 0;       // of these bytes, out of the node
  std::uint64_t operations = 0;       // kernels, copies and collectives
  std::uint64_t collectives = 0;      // of these
  // The first stream's time: it worked; or it stood still, and a collective of the rank was on the wire; or none was,
  // but the rank had come to one and waited for slower peers; or none of these: for the host, or for other streams' work.
  double computing_seconds = 0;
  double exposed_seconds = 0;
  double waiting_seconds = 0;
  double idle_seconds = 0;
  // The rank's collectives were on the wire, on any stream and on the host. What is not exposed of it is hidden.
  double communication_seconds = 0;
};

class VirtualRank {
 public:
  virtual ~VirtualRank() = default;
  virtual int rank() const = 0;
  virtual Device& device() = 0;
  virtual Communicator& communicator() = 0;
  virtual double now() const = 0;     // the rank's clock
  virtual double latest() const = 0;  // when all that it has started so far is done
  virtual const VirtualOutcome& so_far() const = 0;
  // Books work of a client on a stream of this rank's device. `touched` is told to the trace, and costs nothing.
  void work(Stream& stream, std::string_view what, double seconds) { work(stream, what, seconds, Bytes{}); }
  virtual void work(Stream& stream, std::string_view what, double seconds, Bytes touched) = 0;
  // The first stream stands still until latest(): now its times in so_far() add up to that.
  virtual void settle() = 0;
};

class VirtualWorld {
 public:
  explicit VirtualWorld(VirtualOptions options);
  // Runs `body` on every rank, and returns when all have ended. Exceptions end their rank alone. Throws Error where the
  // system has no stack or thread for each rank (Linux: about 32,000 fibers, vm.max_map_count); then nothing has run.
  std::vector<VirtualOutcome> run(const std::function<void(VirtualRank&)>& body);

 private:
  VirtualOptions options_;
};

}  // namespace shardplan
