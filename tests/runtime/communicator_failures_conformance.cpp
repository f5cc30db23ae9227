// The second half of the suite: what happens when a rank does not do what the others do.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "runtime/failing.h"
#include "tests/runtime/communicator_conformance.h"
#include "tests/runtime/conformance_room.h"

namespace shardplan::test {
namespace {

using namespace std::chrono_literals;

constexpr int kCulprit = 2;
constexpr std::uint64_t kElements = 4096;

// What a rank needs to call any collective.
struct Rank {
  Rank(Communicator& its_communicator, Device& its_device)
      : communicator(its_communicator),
        device(its_device),
        room(communicator, device, kElements * 4),
        stream(device.make_stream()),
        mine(piece_of(kElements, communicator.rank(), communicator.size())) {}

  ReduceScatter reduction() const { return room.reduction(kElements, DType::f32, mine); }
  AllGather gather() {
    return {.input = {room.arena.get(), room.part},
            .output = {room.arena.get(), room.full},
            .elements = kElements,
            .mine = mine};
  }

  Communicator& communicator;
  Device& device;
  Room room;
  std::unique_ptr<Stream> stream;
  Piece mine;
};

void call(const std::string& operation, Rank& rank) {
  if (operation == "barrier") {
    rank.communicator.barrier();
  } else if (operation == "all_gather_bytes") {
    const std::vector<std::byte> record(8);
    std::vector<std::byte> all(record.size() * static_cast<std::size_t>(rank.communicator.size()));
    rank.communicator.all_gather_bytes(record, all);
  } else if (operation == "make_arena") {
    rank.communicator.make_arena(rank.device, {.tier = MemoryTier::host, .bytes = 1_MiB});
  } else if (operation == "reduce_scatter") {
    rank.communicator.reduce_scatter(rank.reduction(), *rank.stream);
  } else if (operation == "all_gather") {
    rank.communicator.all_gather(rank.gather(), *rank.stream);
  } else if (operation == "split") {
    rank.communicator.split(0, 0);
  } else {
    ADD_FAILURE() << operation;
  }
}

const std::vector<std::string> kOperations{"barrier",        "all_gather_bytes", "make_arena",
                                           "reduce_scatter", "all_gather",       "split"};

// Later calls throw the same at once, on the communicator and on all of its family.
void expect_poisoned(Communicator& communicator, int culprit) {
  for (int again = 0; again < 2; ++again) {
    try {
      communicator.barrier();
      ADD_FAILURE() << "not poisoned";
    } catch (const CommunicationError& error) {
      EXPECT_EQ(error.rank(), culprit) << error.what();
    }
  }
}

class CommunicatorFailures : public testing::TestWithParam<Harness> {
 protected:
  const RankHarness& harness() const { return *GetParam(); }
  int ranks() const { return std::min(largest_world(harness()), 4); }

  using Body = std::function<void(Rank&, bool culprit)>;
  std::map<int, Outcome> run(std::chrono::milliseconds deadline, const Body& body) const {
    return harness().run(ranks(), deadline, [&](Communicator& communicator, Device& device) {
      Rank rank(communicator, device);
      communicator.barrier();
      body(rank, communicator.rank() == kCulprit);
    });
  }

  // All ranks, the culprit too, are told so.
  void expect_all_told(const std::string& text, const Body& body) const {
    for (const auto& [rank, outcome] : run(60s, body)) {
      EXPECT_NE(outcome.message.find(text), std::string::npos) << "rank " << rank << ": " << outcome.message;
    }
  }
  static void expect_named(const Outcome& outcome, const std::string& operation) {
    EXPECT_EQ(outcome.kind, Outcome::Kind::communication_error) << outcome.message;
    EXPECT_EQ(outcome.rank, kCulprit) << outcome.message;
    EXPECT_EQ(outcome.operation, operation) << outcome.message;
  }
};

// Someone fails, and there are two others. Under a launcher with fewer processes there is nothing to test.
bool has_others(const RankHarness& harness) {
  return largest_world(harness) > kCulprit;
}
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorFailures);
INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorFailures, testing::ValuesIn(harnesses_that(has_others)), name_of);

// Who sleeps is not late in virtual time.
class CommunicatorStalls : public CommunicatorFailures {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorStalls);
INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorStalls, testing::ValuesIn(harnesses_that([](const RankHarness& harness) {
                           return has_others(harness) && harness.real_time();
                         })),
                         name_of);

class CommunicatorFamilies : public CommunicatorFailures {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CommunicatorFamilies);
INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorFamilies, testing::ValuesIn(harnesses_that([](const RankHarness& harness) {
                           return largest_world(harness) >= 4;
                         })),
                         name_of);

// A peer may hear of it in the call before, from which the one that gives up has returned already.
TEST_P(CommunicatorFailures, ARankThatGivesUpIsNamedToTheOthers) {
  for (const std::string& operation : kOperations) {
    const auto outcomes = harness().run(ranks(), 60s, [&](Communicator& communicator, Device& device) {
      std::string first;
      try {
        Rank rank(communicator, device);
        if (communicator.rank() == kCulprit) communicator.abort("the user pressed a key");
        call(operation, rank);
      } catch (const CommunicationError& error) {
        first = error.what();
        EXPECT_EQ(error.operation(), "abort");
        EXPECT_EQ(error.rank(), kCulprit);
      }
      EXPECT_NE(first.find("the user pressed a key"), std::string::npos) << operation << ": " << first;
      expect_poisoned(communicator, kCulprit);
    });
    for (const auto& [rank, outcome] : outcomes) EXPECT_EQ(outcome.message, "") << "rank " << rank;
  }
}

TEST_P(CommunicatorFailures, ARankThatLeavesIsNamedToTheOthers) {
  for (const std::string& operation : kOperations) {
    const auto outcomes = run(60s, [&](Rank& rank, bool culprit) {
      if (culprit) throw Error("a bug of the client's");
      call(operation, rank);
      rank.stream->synchronize();
    });
    for (const auto& [rank, outcome] : outcomes) {
      if (rank == kCulprit) {
        EXPECT_EQ(outcome.message, "a bug of the client's");
      } else {
        expect_named(outcome, operation);
        EXPECT_NE(outcome.message.find("has left the group"), std::string::npos) << outcome.message;
      }
    }
  }
}

// The late rank comes when the others have long given up: a hang would be one for good.
TEST_P(CommunicatorStalls, ARankThatStallsIsNamedToAll) {
  for (const std::string& operation : kOperations) {
    const auto outcomes = run(250ms, [&](Rank& rank, bool culprit) {
      if (culprit) std::this_thread::sleep_for(600ms);
      call(operation, rank);
    });
    for (const auto& [rank, outcome] : outcomes) {
      expect_named(outcome, operation);
      EXPECT_NE(outcome.message.find("deadline 250 ms"), std::string::npos) << outcome.message;
    }
  }
}

TEST_P(CommunicatorFailures, AnotherOperationIsNamedOnBothSides) {
  for (const std::string& operation : kOperations) {
    const std::string other = operation == "barrier" ? "all_gather" : "barrier";
    const Body body = [&](Rank& rank, bool culprit) { call(culprit ? other : operation, rank); };
    expect_all_told(fmt::format("rank 2 calls {} while rank 0 calls {}", other, operation), body);
  }
}

TEST_P(CommunicatorFailures, MismatchesAreFoundInEveryArgumentThatMustBeEqual) {
  const std::vector<std::pair<std::string, std::function<void(ReduceScatter&)>>> changes{
      {"wire dtype bf16, rank 0 with wire dtype fp32", [](ReduceScatter& call) { call.wire = DType::bf16; }},
      {"input offset 4160, rank 0 with input offset 4096", [](ReduceScatter& call) { call.input.offset += 64; }},
      {"elements 3000, rank 0 with elements 4000", [](ReduceScatter& call) { call.elements = 3000; }},
      {"group size 2, rank 0 with group size 0", [](ReduceScatter& call) { call.group_size = 2; }},
      {"scale", [](ReduceScatter& call) { call.scale = 0.5F; }}};
  for (const auto& [expected, change] : changes) {
    expect_all_told("rank 2, reduce_scatter: rank 2 calls it with " + expected,
                    [&apply = change](Rank& rank, bool culprit) {
                      ReduceScatter call = rank.reduction();
                      call.elements = 4000;
                      if (culprit) apply(call);
                      rank.communicator.reduce_scatter(call, *rank.stream);
                    });
  }
  expect_all_told("elements 4000, rank 0 with elements 4096", [](Rank& rank, bool culprit) {
    AllGather call = rank.gather();
    if (culprit) call.elements = 4000;
    rank.communicator.all_gather(call, *rank.stream);
  });
  expect_all_told("equal pieces 0, rank 0 with equal pieces 1", [](Rank& rank, bool culprit) {
    AllGather call = rank.gather();
    call.mine = {static_cast<std::uint64_t>(rank.communicator.rank()) * 500, 500};
    call.elements = static_cast<std::uint64_t>(rank.communicator.size()) * 500;
    call.equal_pieces = !culprit;
    rank.communicator.all_gather(call, *rank.stream);
  });
  expect_all_told("bytes 2097152, rank 0 with bytes 1048576", [](Rank& rank, bool culprit) {
    rank.communicator.make_arena(rank.device, {.tier = MemoryTier::host, .bytes = culprit ? 2_MiB : 1_MiB});
  });
  expect_all_told("bytes 16, rank 0 with bytes 8", [](Rank& rank, bool culprit) {
    const std::vector<std::byte> record(culprit ? 16 : 8);
    std::vector<std::byte> all(record.size() * static_cast<std::size_t>(rank.communicator.size()));
    rank.communicator.all_gather_bytes(record, all);
  });
}

TEST_P(CommunicatorFailures, PiecesMustTileTheBuffer) {
  for (const int change : {-8, 8}) {
    expect_all_told("rank 2's piece starts at element", [&](Rank& rank, bool culprit) {
      ReduceScatter call = rank.reduction();
      if (culprit) call.mine.first += static_cast<std::uint64_t>(std::int64_t{change});
      rank.communicator.reduce_scatter(call, *rank.stream);
    });
  }
  expect_all_told("the ranks' pieces end at element 4095 of 4096", [&](Rank& rank, bool) {
    AllGather call = rank.gather();
    if (rank.communicator.rank() == rank.communicator.size() - 1) call.mine.count -= 1;
    rank.communicator.all_gather(call, *rank.stream);
  });
}

TEST_P(CommunicatorFamilies, FamiliesArePoisonedTogether) {
  const auto outcomes = harness().run(4, 60s, [&](Communicator& world, Device&) {
    const auto part = world.split(world.rank() / 2, 0);
    std::unique_ptr<Communicator> idle;
    int named = -1;
    try {
      idle = world.split(0, 0);  // a rank that is slow here may learn of the failure here
      if (world.rank() == 3) throw Error("gone");
      // Rank 2 waits for rank 3 in their part; ranks 0 and 1 wait for rank 2 in the world.
      (world.rank() == 2 ? *part : world).barrier();
    } catch (const CommunicationError& error) {
      named = error.rank();
    }
    EXPECT_EQ(named, 3);
    expect_poisoned(world, 3);
    expect_poisoned(*part, 3);
    if (idle) expect_poisoned(*idle, 3);
  });
  for (const auto& [rank, outcome] : outcomes) EXPECT_EQ(outcome.message, rank == 3 ? "gone" : "");
}

TEST_P(CommunicatorFailures, MakeArenaTellsTheOthersWhoHasNoMemory) {
  const auto outcomes = run(60s, [&](Rank& rank, bool culprit) {
    Countdown allocations(culprit ? 1 : Countdown::kNever);
    Countdown work;
    FailingDevice device(rank.device, allocations, work);
    rank.communicator.make_arena(device, {.tier = MemoryTier::device, .bytes = 1_MiB});
  });
  for (const auto& [rank, outcome] : outcomes) {
    if (rank == kCulprit) {
      EXPECT_EQ(outcome.kind, Outcome::Kind::out_of_memory) << outcome.message;
    } else {
      expect_named(outcome, "make_arena");
      EXPECT_NE(outcome.message.find("out of device memory"), std::string::npos) << outcome.message;
    }
  }
}

}  // namespace
}  // namespace shardplan::test
