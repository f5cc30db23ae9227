// Transfers between memory and tiers, carried out by threads while the rank goes on.
//
//   const Ticket ticket = queue.submit({.direction = Direction::read, .store = &store, .block = block, .memory = to, ...});
//   ...                               // `to` is the queue's until
//   queue.wait(ticket);               // which throws what went wrong
//
// In order: transfers that share a block or a byte of memory happen in the order in which they were submitted. Others begin
// in that order and end in any. No more than `in_flight` bytes are under way; submit() waits until there is room. Every
// ticket is waited for, once. Threads: the calls are one thread's. No allocation after the constructor unless one fails.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "offload/block_store.h"

namespace shardplan {

enum class Direction : std::uint8_t { read, write };

struct Transfer {
  Direction direction = Direction::read;
  BlockStore* store = nullptr;
  Block block;
  std::span<std::byte> memory;
  std::optional<std::uint64_t> step = 0;  // that the block must be of, or is written by; none: as in BlockStore
};

// Whether they must happen in the order in which they are submitted.
bool share_bytes(const Transfer& a, const Transfer& b);

using Ticket = std::uint64_t;

struct TransferOptions {
  int threads = 4;           // 0: each transfer is carried out by submit() itself
  Bytes in_flight = 64_MiB;  // one transfer alone may be larger
  std::size_t tickets = 64;  // that may be open at once
};

// What carries transfers out: a TransferQueue, or where no byte is held what books their time.
class Transfers {
 public:
  virtual ~Transfers() = default;
  virtual Ticket submit(const Transfer& transfer) = 0;
  virtual void wait(Ticket ticket) = 0;
};

class TransferQueue final : public Transfers {
 public:
  explicit TransferQueue(const TransferOptions& options);
  // Waits for what is under way.
  ~TransferQueue() override;
  TransferQueue(const TransferQueue&) = delete;
  TransferQueue& operator=(const TransferQueue&) = delete;

  Ticket submit(const Transfer& transfer) override;
  // CheckFailure for a ticket that is not open.
  void wait(Ticket ticket) override;

 private:
  enum class State : std::uint8_t { free, pending, running, done };
  struct Entry {
    State state = State::free;
    Ticket ticket = 0;
    Transfer transfer;
    std::exception_ptr error;
  };

  void serve();
  Entry* next_ready();
  bool must_wait(const Entry& entry) const;
  Entry& entry_of(Ticket ticket);
  static std::exception_ptr carry_out(const Transfer& transfer);

  const TransferOptions options_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable ended_;
  std::vector<Entry> entries_;
  Ticket next_ = 1;
  std::uint64_t bytes_under_way_ = 0;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace shardplan
