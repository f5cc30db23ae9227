// Virtual ranks: what a communicator promises, in virtual time, on fibers and on threads.
#include "runtime/virtual/virtual_world.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "base/error.h"

namespace shardplan {
namespace {

// Memory moves 1 GB/s, the link to the host a tenth of that each way; a collective takes a second.
class PlainCosts final : public Costs {
 public:
  double memory_seconds(Bytes touched) const override { return static_cast<double>(touched.count()) * 1e-9; }
  double host_link_seconds(Bytes in, Bytes out) const override {
    return static_cast<double>(std::max(in, out).count()) * 1e-8;
  }
  CollectivePrice collective(VirtualCollective, Bytes, const GroupShape& group) const override {
    return {1, group.nodes > 1 ? 1.0 : 0.0};
  }
};

const PlainCosts kCosts;

std::string message_of(const std::exception_ptr& error) {
  if (!error) return {};
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& exception) {
    return exception.what();
  }
}

class VirtualWorlds : public testing::TestWithParam<bool> {
 protected:
  std::vector<VirtualOutcome> run(int ranks, const std::function<void(VirtualRank&)>& body,
                                  std::vector<Fault> faults = {}, Bytes capacity = 1_GiB) {
    VirtualWorld world({.ranks = ranks,
                        .ranks_per_node = 4,
                        .capacity = capacity,
                        .costs = &kCosts,
                        .faults = std::move(faults),
                        .threads = GetParam()});
    return world.run(body);
  }
};

std::vector<bool> ways() {
  return virtual_ranks_are_threads() ? std::vector<bool>{true} : std::vector<bool>{false, true};
}
INSTANTIATE_TEST_SUITE_P(Ways, VirtualWorlds, testing::ValuesIn(ways()),
                         [](const auto& way) { return way.param ? "threads" : "fibers"; });

TEST_P(VirtualWorlds, RecordsArriveInRankOrder) {
  std::vector<std::string> seen(5);
  const auto outcomes = run(5, [&](VirtualRank& rank) {
    for (int round = 0; round < 3; ++round) {
      const std::byte mine{static_cast<unsigned char>('a' + rank.rank())};
      std::array<std::byte, 5> all{};
      rank.communicator().all_gather_bytes({&mine, 1}, all);
      rank.communicator().visit_records({&mine, 1}, all, [&](int peer, std::span<const std::byte> record) {
        EXPECT_EQ(record[0], all[static_cast<std::size_t>(peer)]);
        seen[static_cast<std::size_t>(rank.rank())] += static_cast<char>(record[0]);
      });
    }
  });
  for (const std::string& text : seen) EXPECT_EQ(text, "abcdeabcdeabcde");
  for (const VirtualOutcome& outcome : outcomes) {
    EXPECT_EQ(message_of(outcome.error), "");
    EXPECT_EQ(outcome.seconds, 6);
    EXPECT_EQ(outcome.operations, 6U);
  }
}

TEST_P(VirtualWorlds, SplitsOrderByKeyThenRank) {
  std::vector<int> ranks(6, -1);
  run(6, [&](VirtualRank& rank) {
    const int color = rank.rank() == 5 ? -1 : rank.rank() % 2;
    const auto part = rank.communicator().split(color, -rank.rank());
    EXPECT_EQ(part == nullptr, color < 0);
    if (!part) return;
    ranks[static_cast<std::size_t>(rank.rank())] = part->rank();
    EXPECT_EQ(part->world_rank(), rank.rank());
    part->barrier();
  });
  EXPECT_EQ(ranks, (std::vector<int>{2, 1, 1, 0, 0, -1}));
}

// What lies in host memory crosses the link, each way at the same time, and while device memory is touched.
TEST_P(VirtualWorlds, HostMemoryIsReachedOverTheLink) {
  const auto outcomes = run(1, [](VirtualRank& rank) {
    const auto device = rank.device().allocate({.tier = MemoryTier::device, .bytes = 1_GiB});
    const auto host = rank.device().allocate({.tier = MemoryTier::pinned_host, .bytes = 1_GiB});
    const auto other = rank.device().allocate({.tier = MemoryTier::host, .bytes = 1_GiB});
    const auto stream = rank.device().make_stream();
    const Bytes bytes{100'000'000};
    const auto seconds = [&](auto&& work) {
      const double begin = rank.latest();
      work();
      return rank.latest() - begin;
    };
    EXPECT_NEAR(seconds([&] { stream->copy(device->data() + 512, device->data(), bytes); }), 0.2, 1e-9);
    EXPECT_NEAR(seconds([&] { stream->copy(device->data(), host->data(), bytes); }), 1, 1e-9);
    EXPECT_NEAR(seconds([&] { stream->copy(host->data(), device->data(), bytes); }), 1, 1e-9);
    EXPECT_NEAR(seconds([&] { stream->copy(other->data(), host->data(), bytes); }), 1, 1e-9);
    EXPECT_NEAR(seconds([&] { stream->zero(host->data(), bytes); }), 1, 1e-9);
    EXPECT_NEAR(seconds([&] { stream->zero(device->data(), bytes); }), 0.1, 1e-9);
    VirtualTraffic traffic;
    traffic.reads(device->data(), 20 * bytes).reads(host->data(), bytes).writes(host->data() + 4096, bytes);
    EXPECT_EQ(traffic.total(), 22 * bytes);
    EXPECT_NEAR(traffic.seconds(kCosts), 2, 1e-9);
    EXPECT_NEAR(traffic.link_seconds(kCosts), 1, 1e-9);
  });
  EXPECT_EQ(message_of(outcomes[0].error), "");
}

// A collective takes a second; what it reads and writes in host memory takes longer.
TEST_P(VirtualWorlds, ACollectiveOverHostMemoryTakesItsLinks) {
  const auto outcomes = run(2, [](VirtualRank& rank) {
    const std::uint64_t elements = 100'000'000;
    const Bytes bytes = bytes_for(DType::f32, elements);
    Communicator& world = rank.communicator();
    const auto host = world.make_arena(rank.device(), {.tier = MemoryTier::pinned_host, .bytes = bytes + 1_MiB});
    const auto device = world.make_arena(rank.device(), {.tier = MemoryTier::device, .bytes = bytes + 1_MiB});
    const Lease of_host = host->take(0, bytes);
    const Lease of_device = device->take(0, bytes);
    const auto stream = rank.device().make_stream();
    const std::uint64_t half = elements / 2;
    const Piece mine{.first = rank.rank() == 0 ? 0 : half, .count = half};
    const auto seconds = [&](auto&& work) {
      const double begin = rank.latest();
      work();
      return rank.latest() - begin;
    };
    const auto gather = [&](SymmetricArena* from, SymmetricArena* to) {
      world.all_gather(
          {.dtype = DType::f32, .input = {from, mine.first * 4}, .output = {to, 0}, .elements = elements, .mine = mine},
          *stream);
    };
    EXPECT_NEAR(seconds([&] { gather(device.get(), device.get()); }), 1, 1e-9);
    EXPECT_NEAR(seconds([&] { gather(host.get(), device.get()); }), 2, 1e-9);
    EXPECT_NEAR(seconds([&] { gather(host.get(), host.get()); }), 4, 1e-9);
    const auto reduce = [&](SymmetricArena* to, ReductionOutput::Mode mode) {
      world.reduce_scatter({.input = {device.get(), 0},
                            .elements = elements,
                            .mine = mine,
                            .output = {.mode = mode, .place = {to, mine.first * 4}}},
                           *stream);
    };
    EXPECT_NEAR(seconds([&] { reduce(host.get(), ReductionOutput::Mode::store); }), 2, 1e-9);
    EXPECT_NEAR(seconds([&] { reduce(host.get(), ReductionOutput::Mode::add); }), 2, 1e-9);
  });
  for (const VirtualOutcome& outcome : outcomes) EXPECT_EQ(message_of(outcome.error), "");
}

TEST_P(VirtualWorlds, ACollectiveStartsWithTheLastRankAndStreamsOverlap) {
  const auto outcomes = run(2, [](VirtualRank& rank) {
    const auto arena = rank.communicator().make_arena(rank.device(), {.bytes = 1_MiB});
    const Lease lease = arena->take(0, Bytes{64});
    const auto compute = rank.device().make_stream();
    const auto communication = rank.device().make_stream();
    const double start = rank.now();
    if (rank.rank() == 1) rank.work(*communication, "late", 3);
    rank.work(*compute, "work", 2);
    const Piece mine{.first = rank.rank() == 0 ? 0U : 8U, .count = 8};
    rank.communicator().all_gather({.dtype = DType::f32,
                                    .input = {arena.get(), mine.first * 4},
                                    .output = {arena.get(), 0},
                                    .elements = 16,
                                    .mine = mine},
                                   *communication);
    EXPECT_EQ(rank.now(), start);  // the rank goes on
    EXPECT_EQ(rank.latest(), start + 4);
    const auto event = rank.device().make_event();
    communication->record(*event);
    EXPECT_FALSE(event->reached());
    compute->wait(*event);
    rank.work(*compute, "after", 1);
    compute->synchronize();
    EXPECT_EQ(rank.now(), start + 5);
    EXPECT_TRUE(event->reached());
  });
  for (const VirtualOutcome& outcome : outcomes) EXPECT_EQ(message_of(outcome.error), "");
  EXPECT_EQ(outcomes[0].sent, 32_B);
  // Making the arena; then 2 of work, of which the last waits for rank 1, 1 more of waiting, the gather, 1 of work.
  EXPECT_EQ(outcomes[0].computing_seconds, 3);
  EXPECT_EQ(outcomes[0].waiting_seconds, 1);
  EXPECT_EQ(outcomes[0].exposed_seconds, 1 + 1);
  EXPECT_EQ(outcomes[0].communication_seconds, 2);
  EXPECT_EQ(outcomes[0].idle_seconds, 0);
  // Rank 1's communication stream worked for so long: nobody waits for a peer.
  EXPECT_EQ(outcomes[1].computing_seconds, 3);
  EXPECT_EQ(outcomes[1].waiting_seconds, 0);
  EXPECT_EQ(outcomes[1].exposed_seconds, 2);
  EXPECT_EQ(outcomes[1].idle_seconds, 1);
}

TEST_P(VirtualWorlds, MemoryIsBookedAndRunsOut) {
  const auto outcomes = run(
      2,
      [](VirtualRank& rank) {
        {
          const auto first = rank.device().allocate({.bytes = 600_MiB});
          EXPECT_THROW(rank.device().allocate({.bytes = 600_MiB}), OutOfMemory);
        }
        const auto again = rank.device().allocate({.bytes = 600_MiB});
        EXPECT_NE(again->data(), nullptr);
        for (int i = 0; i < 2; ++i) {  // the first is gone when all have let it go
          rank.communicator().make_arena(rank.device(), {.bytes = 400_MiB});
          rank.communicator().barrier();
        }
        rank.communicator().make_arena(rank.device(), {.bytes = 500_MiB});
      },
      {}, 1_GiB);
  EXPECT_NE(message_of(outcomes[0].error).find("524288000"), std::string::npos) << message_of(outcomes[0].error);
  EXPECT_NE(message_of(outcomes[1].error).find("524288000"), std::string::npos) << message_of(outcomes[1].error);
}

TEST_P(VirtualWorlds, DifferentCallsNameBothSides) {
  const auto outcomes = run(3, [](VirtualRank& rank) {
    if (rank.rank() == 1) {
      rank.communicator().split(0, 0);
    } else {
      rank.communicator().barrier();
    }
  });
  for (const VirtualOutcome& outcome : outcomes) {
    EXPECT_NE(message_of(outcome.error).find("rank 1 calls split while rank 0 calls barrier"), std::string::npos)
        << message_of(outcome.error);
  }
}

TEST_P(VirtualWorlds, WhoeverLeavesIsNamedAtOnceAndWhoeverDiesAtTheDeadline) {
  const auto left = run(3, [](VirtualRank& rank) {
    if (rank.rank() != 2) rank.communicator().barrier();
  });
  EXPECT_EQ(message_of(left[2].error), "");
  for (const int rank : {0, 1}) {
    const VirtualOutcome& outcome = left[static_cast<std::size_t>(rank)];
    EXPECT_NE(message_of(outcome.error).find("rank 2, barrier: has left the group"), std::string::npos)
        << message_of(outcome.error);
    EXPECT_EQ(outcome.seconds, 0);
  }
  const auto died = run(3, [](VirtualRank& rank) { rank.communicator().barrier(); },
                        {{.kind = FaultKind::kill, .rank = 2, .operation = 1}});
  EXPECT_TRUE(died[2].killed);
  for (const int rank : {0, 1}) {
    const VirtualOutcome& outcome = died[static_cast<std::size_t>(rank)];
    EXPECT_NE(message_of(outcome.error).find("rank 2, barrier: did not arrive"), std::string::npos)
        << message_of(outcome.error);
    EXPECT_EQ(outcome.seconds, 60);
  }
}

TEST_P(VirtualWorlds, AFailureIsToldAgainByEveryLaterCall) {
  const auto outcomes = run(2, [](VirtualRank& rank) {
    if (rank.rank() == 0) rank.communicator().abort("enough");
    std::string first;
    try {
      rank.communicator().barrier();
    } catch (const CommunicationError& error) {
      first = error.what();
    }
    EXPECT_NE(first.find("enough"), std::string::npos) << first;
    EXPECT_THROW(rank.communicator().split(0, 0), CommunicationError);
  });
  for (const VirtualOutcome& outcome : outcomes) EXPECT_EQ(message_of(outcome.error), "");
}

TEST_P(VirtualWorlds, StalledAndSlowRanksTakeLonger) {
  const auto body = [](VirtualRank& rank) {
    const auto stream = rank.device().make_stream();
    rank.work(*stream, "work", 2);
    stream->synchronize();
    rank.communicator().barrier();
  };
  EXPECT_EQ(run(2, body)[0].seconds, 3);
  EXPECT_EQ(run(2, body, {{.kind = FaultKind::stall, .rank = 1, .operation = 1, .seconds = 5}})[0].seconds, 8);
  // At the collective itself; and for longer than the other one waits.
  EXPECT_EQ(run(2, body, {{.kind = FaultKind::stall, .rank = 1, .operation = 2, .seconds = 5}})[0].seconds, 8);
  const auto given_up = run(2, body, {{.kind = FaultKind::stall, .rank = 1, .operation = 2, .seconds = 100}});
  for (const VirtualOutcome& outcome : given_up) {
    EXPECT_NE(message_of(outcome.error).find("rank 1, barrier: did not arrive"), std::string::npos)
        << message_of(outcome.error);
  }
  EXPECT_EQ(given_up[0].seconds, 62);
  EXPECT_EQ(run(2, body, {{.kind = FaultKind::slow_rank, .rank = 1, .operation = 1, .factor = 3}})[0].seconds, 7);
  EXPECT_EQ(run(2, body, {{.kind = FaultKind::slow_link, .rank = 1, .operation = 1, .factor = 4}})[0].seconds, 6);
}

}  // namespace
}  // namespace shardplan
