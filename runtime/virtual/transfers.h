// Collectives on the wire, and how they share links. Internal to runtime/virtual.
//
// Links: one of each rank inside its node, and the adapters between nodes and network, each of one rank or of several
// neighbours. A collective takes a part of the links of its ranks while its bytes move (CollectivePrice). Where the
// parts that several take of one link add up to u > 1, each of them moves at 1/u of its speed; of its links, the most
// crowded one decides (processor sharing at the bottleneck).
//
// Time goes on from moment to moment: whoever asks calls next() when nobody can begin a collective at an earlier time.
// A collective that is told late, beginning before the last moment, shares with those that are still moving then.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/virtual/costs.h"

namespace shardplan {

class Transfers;

// One group's: of one collective at a time.
class Transfer {
 public:
  virtual ~Transfer();
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;
  // It is over at `time`.
  virtual void ended(double time) = 0;

 protected:
  // `ranks` are world ranks. `transfers` outlives it.
  Transfer(Transfers& transfers, const std::vector<int>& ranks);

 private:
  friend class Transfers;
  Transfers& transfers_;
  std::vector<std::uint32_t> links_;     // of its ranks
  std::vector<std::uint32_t> adapters_;  // each once
  std::uint32_t link_use_ = 0;           // in parts of kWhole
  std::uint32_t adapter_use_ = 0;
  double remaining_ = 0;  // seconds at full speed, from updated_ on
  double updated_ = 0;
  double speed_ = 1;
  bool moving_ = false;
  std::uint64_t current_ = 0;  // the number of its one event that counts
  std::size_t events_ = 0;     // how many there are
};

class Transfers {
 public:
  Transfers(int ranks, int ranks_per_adapter);

  // A collective begins; `factor` times as long as its price says.
  void begin(Transfer& transfer, const CollectivePrice& price, double factor, double time);
  bool idle() const { return in_flight_ == 0; }
  int ranks_per_adapter() const { return ranks_per_adapter_; }
  // Goes on to the next moment at which a collective ends, or its bytes begin to move. Not while idle.
  void next();

 private:
  friend class Transfer;
  struct Event {
    double time;
    std::uint64_t number;  // of two at one time, the one that was set first comes first
    Transfer* transfer;
    bool moves;  // its bytes begin to move; else, it ends
  };
  static bool later(const Event& a, const Event& b);

  void set(Transfer& transfer, double time, bool moves);
  void move(Transfer& transfer, double time);
  bool occupy(const Transfer& transfer);
  void release(const Transfer& transfer);
  void share(double time);
  double speed_of(const Transfer& transfer) const;
  void forget(const Transfer& transfer);

  int ranks_per_adapter_;
  std::vector<std::uint32_t> links_;  // what is taken of each
  std::vector<std::uint32_t> adapters_;
  std::vector<Event> events_;  // a heap
  std::vector<Transfer*> moving_;
  std::vector<Transfer*> over_;
  std::uint64_t numbers_ = 0;
  std::size_t in_flight_ = 0;
  bool crowded_ = false;  // somebody does not have full speed
};

}  // namespace shardplan
