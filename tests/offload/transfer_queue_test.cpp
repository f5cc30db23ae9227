// Order, the bound, errors and threads of the queue.
#include "offload/transfer_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/error.h"
#include "offload/failing_tier.h"
#include "offload/host_tier.h"
#include "runtime/cpu_device.h"
#include "tests/support/allocation_count.h"

namespace shardplan::test {
namespace {

constexpr std::size_t kBlock = 4096;

// Every transfer takes a while, and how many go on at once is counted.
class SlowTier final : public ByteTier {
 public:
  explicit SlowTier(ByteTier& inner) : inner_(inner) {}
  std::string name() const override { return inner_.name(); }
  Bytes bytes() const override { return inner_.bytes(); }
  void read(std::uint64_t offset, std::span<std::byte> to) override {
    const Presence presence(*this, to.size());
    inner_.read(offset, to);
  }
  void write(std::uint64_t offset, std::span<const std::byte> from) override {
    const Presence presence(*this, from.size());
    inner_.write(offset, from);
  }
  void flush() override {}
  void check() override {}
  std::size_t most_at_once() const { return most_; }
  std::size_t most_bytes() const { return most_bytes_; }

 private:
  struct Presence {
    Presence(SlowTier& owner, std::size_t size) : tier(owner), bytes(size) {
      raise(tier.most_, ++tier.present_);
      raise(tier.most_bytes_, tier.bytes_present_ += bytes);
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
    ~Presence() {
      --tier.present_;
      tier.bytes_present_ -= bytes;
    }
    static void raise(std::atomic<std::size_t>& most, std::size_t now) {
      std::size_t seen = most;
      while (seen < now && !most.compare_exchange_weak(seen, now)) {
      }
    }
    SlowTier& tier;
    std::size_t bytes;
  };

  ByteTier& inner_;
  std::atomic<std::size_t> present_ = 0;
  std::atomic<std::size_t> most_ = 0;
  std::atomic<std::size_t> bytes_present_ = 0;
  std::atomic<std::size_t> most_bytes_ = 0;
};

struct Fixture {
  CpuDevice cpu;
  FailingTier failing{std::make_unique<HostTier>(cpu, Bytes{16 * kBlock})};
  SlowTier tier{failing};
  std::array<BlockRecord, 16> records{};
  BlockStore store{tier, records};
  std::array<std::vector<std::byte>, 16> memory;

  Fixture() {
    for (auto& part : memory) part.resize(kBlock);
  }
  Transfer transfer(Direction direction, std::uint64_t index, std::size_t slot, std::uint64_t step) {
    return {.direction = direction,
            .store = &store,
            .block = {.index = index, .offset = index * kBlock},
            .memory = memory[slot],
            .step = step};
  }
};

// Random transfers give what the same ones give one after the other: those that share a block or memory keep their order.
TEST(TransferQueue, IsAsIfEachHadFinishedBeforeTheNext) {
  for (const int threads : {0, 1, 4}) {
    Fixture f;
    std::array<std::byte, 16> model_tier{};
    std::array<std::byte, 16> model_memory{};
    std::array<std::uint64_t, 16> steps{};
    TransferQueue queue({.threads = threads, .in_flight = Bytes{5 * kBlock}, .tickets = 8});
    std::mt19937_64 random(static_cast<std::uint64_t>(threads));
    for (std::uint64_t i = 0; i < 16; ++i) queue.wait(queue.submit(f.transfer(Direction::write, i, i, 0)));
    std::vector<Ticket> open;
    for (std::uint64_t round = 1; round < 400; ++round) {
      const std::uint64_t index = random() % 5;
      const std::size_t slot = random() % 6;
      if (random() % 4 == 0) {  // the client's own turn: it waits for all, and writes into a slot
        for (const Ticket ticket : open) queue.wait(ticket);
        open.clear();
        model_memory[slot] = static_cast<std::byte>(round);
        std::fill(f.memory[slot].begin(), f.memory[slot].end(), model_memory[slot]);
      }
      if (open.size() == 8) {
        queue.wait(open.front());
        open.erase(open.begin());
      }
      if (random() % 2 == 0) {
        open.push_back(queue.submit(f.transfer(Direction::write, index, slot, steps[index])));
        model_tier[index] = model_memory[slot];
      } else {
        open.push_back(queue.submit(f.transfer(Direction::read, index, slot, steps[index])));
        model_memory[slot] = model_tier[index];
      }
    }
    for (const Ticket ticket : open) queue.wait(ticket);
    for (std::size_t slot = 0; slot < 6; ++slot) {
      EXPECT_TRUE(std::all_of(f.memory[slot].begin(), f.memory[slot].end(),
                              [&](std::byte byte) { return byte == model_memory[slot]; }))
          << threads << " threads, slot " << slot;
    }
  }
}

TEST(TransferQueue, TransfersOverlapUpToTheBound) {
  for (const std::size_t bound : {std::size_t{1}, std::size_t{2}, std::size_t{3}}) {
    Fixture f;
    TransferQueue queue({.threads = 4, .in_flight = Bytes{bound * kBlock}, .tickets = 16});
    std::vector<Ticket> open;
    for (std::uint64_t i = 0; i < 16; ++i) open.push_back(queue.submit(f.transfer(Direction::write, i, i, 0)));
    for (const Ticket ticket : open) queue.wait(ticket);
    EXPECT_LE(f.tier.most_bytes(), bound * kBlock);
    EXPECT_EQ(f.tier.most_at_once() > 1, bound > 1);
  }
}

TEST(TransferQueue, OneTransferMayBeLargerThanTheBound) {
  Fixture f;
  TransferQueue queue({.threads = 1, .in_flight = Bytes{10}, .tickets = 2});
  queue.wait(queue.submit(f.transfer(Direction::write, 0, 0, 0)));
  EXPECT_EQ(f.store.step_of(0), 0U);
  EXPECT_EQ(f.records[0].bytes, kBlock);
}

TEST(TransferQueue, AnErrorIsOfItsTicketAlone) {
  for (const int threads : {0, 1, 3}) {
    Fixture f;
    TransferQueue queue({.threads = threads, .tickets = 16});
    f.failing.arm(TierFault::io_error, 1);
    std::vector<Ticket> open;
    for (std::uint64_t i = 0; i < 6; ++i) open.push_back(queue.submit(f.transfer(Direction::write, i, i, 3)));
    int failed = 0;
    for (const Ticket ticket : open) {
      try {
        queue.wait(ticket);
      } catch (const IoError&) {
        ++failed;
      }
    }
    EXPECT_EQ(failed, 1);
    EXPECT_EQ(std::count_if(f.records.begin(), f.records.end(), [](const BlockRecord& r) { return r.step == 3; }), 5);
  }
}

TEST(TransferQueue, EndsWithWhatWasSubmitted) {
  Fixture f;
  {
    TransferQueue queue({.threads = 2, .tickets = 16});
    for (std::uint64_t i = 0; i < 16; ++i) queue.submit(f.transfer(Direction::write, i, i, 9));
  }
  for (const BlockRecord& record : f.records) EXPECT_EQ(record.step, 9U);
}

TEST(TransferQueue, MisuseIsACheckFailure) {
  Fixture f;
  TransferQueue queue({.threads = 0, .tickets = 2});
  const Ticket ticket = queue.submit(f.transfer(Direction::write, 0, 0, 0));
  queue.submit(f.transfer(Direction::write, 1, 1, 0));
  EXPECT_THROW(queue.submit(f.transfer(Direction::write, 2, 2, 0)), CheckFailure);  // both tickets are open
  queue.wait(ticket);
  EXPECT_THROW(queue.wait(ticket), CheckFailure);
  EXPECT_THROW(queue.wait(77), CheckFailure);
  EXPECT_THROW(TransferQueue({.threads = -1}), CheckFailure);
}

TEST(TransferQueue, AllocatesNothingOnceItIsMade) {
  Fixture f;
  TransferQueue queue({.threads = 2, .tickets = 4});
  queue.wait(queue.submit(f.transfer(Direction::write, 0, 0, 0)));
  const std::uint64_t before = allocations_of_this_thread();
  for (int i = 0; i < 100; ++i) {
    const Ticket write = queue.submit(f.transfer(Direction::write, 0, 0, 0));
    const Ticket read = queue.submit(f.transfer(Direction::read, 0, 0, 0));
    queue.wait(write);
    queue.wait(read);
  }
  EXPECT_EQ(allocations_of_this_thread(), before);
}

}  // namespace
}  // namespace shardplan::test
