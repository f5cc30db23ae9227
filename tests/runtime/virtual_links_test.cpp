// Virtual time by hand: collectives that share links, and where a rank's time went.
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/delaying.h"
#include "runtime/failing.h"
#include "runtime/virtual/virtual_world.h"
#include "tests/support/allocation_count.h"

namespace shardplan {
namespace {

// A gather takes a second to start, and four to move its bytes; nothing else takes time.
class LinkCosts final : public Costs {
 public:
  LinkCosts(double node_use, double network_use) : node_use_(node_use), network_use_(network_use) {}
  double memory_seconds(Bytes) const override { return 0; }
  double host_link_seconds(Bytes, Bytes) const override { return 0; }
  CollectivePrice collective(VirtualCollective kind, Bytes, const GroupShape&) const override {
    if (kind != VirtualCollective::all_gather) return {};
    return {.seconds = 5, .start_seconds = 1, .node_use = node_use_, .network_use = network_use_};
  }

 private:
  double node_use_;
  double network_use_;
};

class VirtualLinks : public testing::TestWithParam<bool> {
 protected:
  // Ranks in groups of `group`; each rank of group g works for lag[g] first, then its group gathers. The ends.
  std::vector<double> ends_of(int ranks_per_adapter, int group, const std::vector<double>& lags, const Costs& costs,
                              std::vector<Fault> faults = {}) {
    const int ranks = group * static_cast<int>(lags.size());
    std::vector<double> ends(lags.size());
    VirtualWorld world({.ranks = ranks,
                        .ranks_per_node = ranks,
                        .ranks_per_adapter = ranks_per_adapter,
                        .costs = &costs,
                        .faults = std::move(faults),
                        .threads = GetParam()});
    const auto outcomes = world.run([&](VirtualRank& rank) {
      const auto arena = rank.communicator().make_arena(rank.device(), {.bytes = 1_MiB});
      const Lease lease = arena->take(0, Bytes{64});
      const int color = rank.rank() / group;
      const auto part = rank.communicator().split(color, rank.rank());
      const auto stream = rank.device().make_stream();
      rank.work(*stream, "lag", lags[static_cast<std::size_t>(color)]);
      gather(*part, *arena, *stream);
      ends[static_cast<std::size_t>(color)] = rank.latest();
    });
    for (const VirtualOutcome& outcome : outcomes) EXPECT_EQ(outcome.error, nullptr);
    return ends;
  }

  static void gather(Communicator& group, SymmetricArena& arena, Stream& stream) {
    const auto size = static_cast<std::uint64_t>(group.size());
    const Piece mine{.first = static_cast<std::uint64_t>(group.rank()), .count = 1};
    group.all_gather(
        {.dtype = DType::f32, .input = {&arena, mine.first * 4}, .output = {&arena, 0}, .elements = size, .mine = mine},
        stream);
  }
};

std::vector<bool> ways() {
  return virtual_ranks_are_threads() ? std::vector<bool>{true} : std::vector<bool>{false, true};
}
INSTANTIATE_TEST_SUITE_P(Ways, VirtualLinks, testing::ValuesIn(ways()),
                         [](const auto& way) { return way.param ? "threads" : "fibers"; });

using Ends = std::vector<double>;

TEST_P(VirtualLinks, WhatOverlapsOnAnAdapterIsSlower) {
  const LinkCosts whole(0, 1);
  // Alone, one after the other, and on adapters of their own: the price.
  EXPECT_EQ(ends_of(4, 2, {0}, whole), (Ends{5}));
  EXPECT_EQ(ends_of(4, 2, {0, 4}, whole), (Ends{5, 9}));
  EXPECT_EQ(ends_of(2, 2, {0, 0}, whole), (Ends{5, 5}));
  // Together all the way: bytes take twice as long.
  EXPECT_EQ(ends_of(4, 2, {0, 0}, whole), (Ends{9, 9}));
  // The first moves alone from 1 to 3, and its other half at half speed to 7; the second does half until then, and the
  // rest alone.
  EXPECT_EQ(ends_of(4, 2, {0, 2}, whole), (Ends{7, 9}));
  // Three, of which two share one adapter, and one has its own.
  EXPECT_EQ(ends_of(2, 1, {0, 0, 0}, whole), (Ends{9, 9, 5}));
  // A third of the link each: nobody is slower; two thirds each: a third more.
  EXPECT_EQ(ends_of(4, 2, {0, 0}, LinkCosts(0, 1.0 / 3)), (Ends{5, 5}));
  const Ends crowded = ends_of(4, 2, {0, 0}, LinkCosts(0, 2.0 / 3));
  EXPECT_NEAR(crowded[0], 1 + 4 * 4.0 / 3, 1e-3);
  EXPECT_EQ(crowded[0], crowded[1]);
  // Links inside a node are each rank's own.
  EXPECT_EQ(ends_of(4, 2, {0, 0}, LinkCosts(1, 0)), (Ends{5, 5}));
}

TEST_P(VirtualLinks, ASlowLinkHoldsUpWhoSharesIt) {
  const LinkCosts whole(0, 1);
  // The first starts for 2 and moves for 8. The second moves alone from 1 to 2, and its other 3 at half speed until 8;
  // by then the first has done 3 of its 8, and it does the rest alone.
  const std::vector<Fault> slow{{.kind = FaultKind::slow_link, .rank = 0, .operation = 1, .factor = 2}};
  EXPECT_EQ(ends_of(4, 2, {0, 0}, whole, slow), (Ends{13, 8}));
}

// The parts of each rank's time, and that they close.
TEST_P(VirtualLinks, TimeIsComputingExposedWaitingOrIdle) {
  const LinkCosts costs(1, 0);
  VirtualWorld world({.ranks = 2, .costs = &costs, .threads = GetParam()});
  const auto outcomes = world.run([&](VirtualRank& rank) {
    const auto compute = rank.device().make_stream();
    const auto communication = rank.device().make_stream();
    const auto arena = rank.communicator().make_arena(rank.device(), {.bytes = 1_MiB});
    const Lease lease = arena->take(0, Bytes{64});
    const bool late = rank.rank() == 1;
    const auto event = rank.device().make_event();
    // Rank 1 comes 4 later. Rank 0 works for 2, waits 2 for it and 5 for the gather; rank 1 works 2 of its 5.
    if (late) rank.work(*compute, "late", 4);
    compute->record(*event);
    communication->wait(*event);
    gather(rank.communicator(), *arena, *communication);
    rank.work(*compute, "beside", 2);
    communication->record(*event);
    compute->wait(*event);
    rank.work(*compute, "after", 0.25);
    // A copy on the other stream, which is neither: 1 of idling.
    rank.work(*communication, "copy", 1.25);
    rank.settle();
    EXPECT_EQ(rank.latest(), 4 + 5 + 1.25);
    const VirtualOutcome& parts = rank.so_far();
    EXPECT_EQ(parts.computing_seconds, late ? 6.25 : 2.25);
    EXPECT_EQ(parts.waiting_seconds, late ? 0 : 2);
    EXPECT_EQ(parts.exposed_seconds, late ? 3 : 5);
    EXPECT_EQ(parts.idle_seconds, 1);
    EXPECT_EQ(parts.communication_seconds, 5);
    EXPECT_EQ(parts.computing_seconds + parts.waiting_seconds + parts.exposed_seconds + parts.idle_seconds,
              rank.latest());
  });
  for (const VirtualOutcome& outcome : outcomes) EXPECT_EQ(outcome.error, nullptr);
}

// A failure does not take away a collective that all have come to: it is told at the next call.
TEST_P(VirtualLinks, WhatIsOnTheWireEndsBeforeAFailureIsTold) {
  const LinkCosts costs(1, 0);
  VirtualWorld world({.ranks = 4, .costs = &costs, .threads = GetParam()});
  const auto outcomes = world.run([&](VirtualRank& rank) {
    const auto arena = rank.communicator().make_arena(rank.device(), {.bytes = 1_MiB});
    const Lease lease = arena->take(0, Bytes{64});
    const auto pair = rank.communicator().split(rank.rank() / 2, rank.rank());
    const auto stream = rank.device().make_stream();
    if (rank.rank() == 3) rank.communicator().abort("enough");
    gather(*pair, *arena, *stream);
    EXPECT_LT(rank.rank(), 2);
    EXPECT_EQ(rank.latest(), 5);
    EXPECT_THROW(rank.communicator().barrier(), CommunicationError);
  });
  EXPECT_EQ(outcomes[0].error, nullptr);
  EXPECT_EQ(outcomes[1].error, nullptr);
  EXPECT_NE(outcomes[2].error, nullptr);
  EXPECT_NE(outcomes[3].error, nullptr);
}

TEST_P(VirtualLinks, AdaptorsMayStandBeforeAVirtualStream) {
  const LinkCosts costs(1, 0);
  VirtualWorld world({.ranks = 2, .costs = &costs, .threads = GetParam()});
  const auto outcomes = world.run([&](VirtualRank& rank) {
    Countdown allocations;
    Countdown work;
    FailingDevice inner(rank.device(), allocations, work);
    RandomDelay none(1, std::chrono::microseconds(0));
    DelayingDevice device(inner, none);
    const auto arena = rank.communicator().make_arena(device, {.bytes = 1_MiB});
    const Lease lease = arena->take(0, Bytes{64});
    const auto stream = device.make_stream();
    gather(rank.communicator(), *arena, *stream);
    rank.work(*stream, "work", 2);
    EXPECT_EQ(rank.latest(), 7);
    EXPECT_EQ(work.count(), 2U);
  });
  for (const VirtualOutcome& outcome : outcomes) EXPECT_EQ(outcome.error, nullptr);
}

TEST_P(VirtualLinks, CallsAllocateNothing) {
  const LinkCosts costs(1, 1);
  VirtualWorld world({.ranks = 4, .ranks_per_adapter = 4, .costs = &costs, .threads = GetParam()});
  const auto outcomes = world.run([&](VirtualRank& rank) {
    const auto arena = rank.communicator().make_arena(rank.device(), {.bytes = 1_MiB});
    const Lease lease = arena->take(0, Bytes{64});
    const auto pair = rank.communicator().split(rank.rank() / 2, rank.rank());
    const auto stream = rank.device().make_stream();
    const std::array<std::byte, 4> mine{};
    std::array<std::byte, 16> all{};
    const auto round = [&] {
      gather(*pair, *arena, *stream);
      rank.communicator().all_gather_bytes(mine, all);
      rank.communicator().barrier();
    };
    for (int i = 0; i < 3; ++i) round();
    const std::uint64_t before = test::allocations_of_this_thread();
    for (int i = 0; i < 100; ++i) round();
    EXPECT_EQ(test::allocations_of_this_thread(), before);
  });
  for (const VirtualOutcome& outcome : outcomes) EXPECT_EQ(outcome.error, nullptr);
}

TEST_P(VirtualLinks, FaultsSayWhetherTheyHappened) {
  const LinkCosts costs(1, 0);
  VirtualWorld world({.ranks = 2,
                      .capacity = 1_GiB,
                      .costs = &costs,
                      .faults = {{.kind = FaultKind::slow_rank, .rank = 1, .operation = 2, .factor = 2},
                                 {.kind = FaultKind::slow_rank, .rank = 1, .operation = 3, .factor = 2},
                                 {.kind = FaultKind::out_of_memory, .rank = 0, .bytes = 2_MiB},
                                 {.kind = FaultKind::out_of_memory, .rank = 1, .bytes = 4_MiB}},
                      .threads = GetParam()});
  const auto outcomes = world.run([&](VirtualRank& rank) {
    rank.communicator().barrier();
    rank.communicator().barrier();
    if (rank.rank() == 0) {
      EXPECT_THROW(rank.device().allocate({.bytes = 3_MiB}), OutOfMemory);
    }
  });
  EXPECT_EQ(outcomes[0].faults, (std::vector<std::size_t>{2}));
  EXPECT_EQ(outcomes[1].faults, (std::vector<std::size_t>{0}));
}

}  // namespace
}  // namespace shardplan
