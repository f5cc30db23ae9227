// The ranks of a virtual communicator: where they meet for a collective. Internal to runtime/virtual.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/collective_call.h"
#include "runtime/symmetric_arena.h"
#include "runtime/virtual/virtual_machine.h"

namespace shardplan {

// Whoever comes last does what is to be done for all; then the collective is on the wire, and all wait for its end.
class VirtualGroup final : public MeetingPlace, public Transfer {
 public:
  VirtualGroup(VirtualMachine& machine, std::vector<int> world_ranks);

  VirtualMachine& machine() const { return machine_; }
  int size() const { return static_cast<int>(world_ranks_.size()); }
  int world_rank(int member) const { return world_ranks_[static_cast<std::size_t>(member)]; }
  int member_of(int world_rank) const;

  // What a rank brings to a collective besides what must be equal on all.
  struct Arrival {
    Piece piece;
    const void* payload = nullptr;
    int color = 0;
    int key = 0;
    double called = 0;
    bool present = false;
  };
  const Arrival& arrival(int member) const { return arrivals_[static_cast<std::size_t>(member)]; }

  struct Span {
    double begin = 0;
    double end = 0;
    double network_share = 0;
    int last = 0;  // the world rank that the others waited for
  };
  // One collective: returns when it is over. `complete` is called once, on the last rank, when all have come; what it
  // leaves in this object stays until all have come again.
  template <typename Complete>
  Span meet(int member, const CollectiveCall& call, double called, VirtualCollective kind, Bytes bytes,
            Complete complete) {
    try {
      if (arrive(member, call, called)) {
        complete();
        begin(member, kind, bytes);
      }
    } catch (const CommunicationError&) {
      throw;
    } catch (const std::exception& error) {
      machine_.poison(world_rank(member), call.operation, error.what(), called);
      throw;
    }
    return span_;
  }

  // The communicator of this member is gone.
  void leave(int member);

  int missing() const override;
  void ended(double time) override;

  // Made by the last rank of a collective, read by all.
  std::vector<std::byte> records;
  std::shared_ptr<ArenaGroup> arenas;
  int arena_takers = 0;
  std::map<int, std::shared_ptr<VirtualGroup>> colors;

 private:
  // True for the last rank, at once. For the others when it is over; or CommunicationError.
  bool arrive(int member, const CollectiveCall& call, double called);
  void begin(int member, VirtualCollective kind, Bytes bytes);
  void require_equal_calls();
  void require_in_time();
  const CollectiveCall& call_of(int member) const;
  [[noreturn]] void fail(int rank, const char* operation, const std::string& problem, double time);

  VirtualMachine& machine_;
  std::vector<int> world_ranks_;
  GroupShape shape_;
  std::vector<Arrival> arrivals_;
  CollectiveCall first_call_;                            // of whoever came first
  std::vector<std::pair<int, CollectiveCall>> unequal_;  // of the members that call something else
  int arrived_ = 0;
  std::uint64_t meetings_ = 0;
  int departed_ = -1;
  Span span_;
};

}  // namespace shardplan
