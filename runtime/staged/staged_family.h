// What the communicators of one rank that were split from each other share: the exchange, the first failure, and room
// for a collective. Internal to runtime/.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/collective_call.h"
#include "runtime/staged/encoded_call.h"
#include "runtime/staged/exchange.h"

namespace shardplan {

class StagedFamily {
 public:
  explicit StagedFamily(std::unique_ptr<Exchange> exchange);
  // The exchange goes first, the arenas after it: what it may still read or write outlives it.
  ~StagedFamily();
  StagedFamily(const StagedFamily&) = delete;
  StagedFamily& operator=(const StagedFamily&) = delete;

  const Exchange& exchange() const { return *exchange_; }

  // One collective of the group: calls are met and compared, then `work()` moves the data. What `early()` sends and
  // receives may be on its way before the calls are compared. Any exception poisons the family and is told to the peers.
  // A peer's failure becomes CommunicationError.
  template <typename Early, typename Work>
  void collective(std::span<const int> world_ranks, std::uint64_t group, const CollectiveCall& call, Early&& early,
                  Work&& work) {
    throw_if_poisoned();
    try {
      early();
      meet(world_ranks, group, call);
      work();
    } catch (const PeerFailure& failure) {
      poison(failure_of(failure, call.operation));
      throw_failure();
    } catch (const std::exception& error) {
      poison({exchange_->rank(), call.operation, error.what()});
      throw;
    }
  }
  // The members' calls of the current collective.
  const EncodedCall& call_of(std::size_t member) const { return calls_[member]; }

  // Messages of the next exchange, and the exchange. Only inside of a collective's work; early() has the first two.
  void send(int world_rank, std::span<const std::byte> bytes) { sends_.push_back({world_rank, bytes}); }
  void receive(int world_rank, std::span<std::byte> bytes) { receives_.push_back({world_rank, bytes}); }
  void exchange_messages();

  // A number that the members of the current collective agree on, and that no group or arena of theirs has.
  std::uint64_t agree_on_id(std::size_t members);

  void remember(const std::shared_ptr<ArenaGroup>& arenas);

  // Who is to blame, as every rank shall name it.
  struct Failure {
    int world_rank = -1;
    std::string operation;
    std::string problem;
  };
  // The first failure stays. From any thread.
  void poison(const Failure& failure) noexcept;
  void throw_if_poisoned() const {
    if (poisoned_.load()) throw_failure();
  }

 private:
  [[noreturn]] void throw_failure() const;
  static Failure failure_of(const PeerFailure& failure, const char* operation);
  void meet(std::span<const int> world_ranks, std::uint64_t group, const CollectiveCall& call);
  void compare(std::span<const int> world_ranks, const CollectiveCall& mine) const;

  // Before the exchange, which may hold on to what they own after a failure.
  std::vector<std::weak_ptr<ArenaGroup>> arenas_;
  std::vector<std::shared_ptr<ArenaGroup>> kept_arenas_;
  std::vector<EncodedCall> calls_;
  std::vector<Exchange::Outgoing> sends_, call_sends_;
  std::vector<Exchange::Incoming> receives_, call_receives_;
  std::uint64_t next_id_ = 1;
  std::atomic<bool> poisoned_{false};
  mutable std::mutex mutex_;  // of failure_
  Failure failure_;
  std::unique_ptr<Exchange> exchange_;
};

}  // namespace shardplan
