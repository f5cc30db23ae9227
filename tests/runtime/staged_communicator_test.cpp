// What is particular to ranks that exchange copies. The rest is in communicator_conformance.cpp.
#include "runtime/staged/staged_communicator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "tests/runtime/conformance_room.h"
#include "tests/support/run_ranks.h"
#include "tests/support/thread_exchange.h"

namespace shardplan::test {
namespace {

using namespace std::chrono_literals;

std::vector<std::string> messages_of_ranks(int ranks, const std::function<void(Communicator&)>& body,
                                           std::chrono::milliseconds deadline = 60s) {
  std::vector<std::string> messages;
  for (const auto& outcome :
       outcomes_of_ranks(make_staged_communicators(ranks, deadline),
                         [&](const std::unique_ptr<Communicator>& communicator) { body(*communicator); })) {
    messages.push_back(message_of(outcome));
  }
  return messages;
}

// From one element of each other rank, over blocks that divide nothing, to all at once.
TEST(StagedReduceScatter, HasTheSameBitsWhateverTheSizeOfItsBlocks) {
  constexpr int kRanks = 4;
  constexpr std::uint64_t kElements = 4999;
  CpuDevice device;
  for (const std::uint64_t staging_bytes : {12U, 13U, 100U, 3U * 64U, 3U * 1000U, 8192U}) {
    for (const DType wire : {DType::f32, DType::bf16}) {
      for (const std::string& message : messages_of_ranks(kRanks, [&](Communicator& communicator) {
             Room room(communicator, device, kElements * 4);
             const auto stream = device.make_stream();
             fill(room.full_lease.data(), wire, communicator.rank(), kElements);
             ReduceScatter call = room.reduction(kElements, wire, piece_of(kElements, communicator.rank(), kRanks));
             call.group_size = 3;
             call.staging_bytes = staging_bytes;
             communicator.reduce_scatter(call, *stream);
             const auto expected = reduced(call, kRanks);
             EXPECT_TRUE(std::equal(expected.begin(), expected.end(), room.part_lease.data())) << staging_bytes;
           })) {
        EXPECT_EQ(message, "");
      }
    }
  }
}

// A piece that takes more than one message, of one rank alone, with an end that fills no block.
TEST(StagedAllGather, CutsLongPieces) {
  constexpr std::uint64_t kElements = kLongestMessage.count() + 4097;
  CpuDevice device;
  for (const std::string& message : messages_of_ranks(2, [&](Communicator& communicator) {
         auto arena =
             communicator.make_arena(device, {.tier = MemoryTier::device, .bytes = Bytes{kElements} + kArenaShiftRoom});
         const Lease lease = arena->take(0, Bytes{kElements});
         const auto stream = device.make_stream();
         const Piece mine = communicator.rank() == 0 ? Piece{0, kElements - 3} : Piece{kElements - 3, 3};
         const auto byte_at = [](std::uint64_t i) { return static_cast<std::byte>((i * 2654435761U) >> 24); };
         for (std::uint64_t i = mine.first; i < mine.first + mine.count; ++i) lease.data()[i] = byte_at(i);
         communicator.all_gather({.dtype = DType::u8,
                                  .input = {arena.get(), mine.first},
                                  .output = {arena.get(), 0},
                                  .elements = kElements,
                                  .mine = mine},
                                 *stream);
         std::uint64_t wrong = 0;
         for (std::uint64_t i = 0; i < kElements; ++i) wrong += lease.data()[i] == byte_at(i) ? 0U : 1U;
         EXPECT_EQ(wrong, 0U);
       })) {
    EXPECT_EQ(message, "");
  }
}

TEST(StagedReduceScatter, RefusesToDoWithoutStaging) {
  CpuDevice device;
  for (const std::string& message : messages_of_ranks(3, [&](Communicator& communicator) {
         Room room(communicator, device, 4096);
         const auto stream = device.make_stream();
         const ReduceScatter good = room.reduction(1024, DType::f32, piece_of(1024, communicator.rank(), 3));
         communicator.reduce_scatter(good, *stream);
         const auto refuses = [&](auto&& change) {
           ReduceScatter bad = good;
           change(bad);
           EXPECT_THROW(communicator.reduce_scatter(bad, *stream), CheckFailure);
         };
         refuses([](ReduceScatter& call) { call.staging = {}, call.staging_bytes = 0; });
         refuses([](ReduceScatter& call) { call.staging_bytes = 7; });  // two others' elements are 8 bytes
         refuses([](ReduceScatter& call) { call.staging = call.input; });
         refuses([](ReduceScatter& call) { call.staging = call.output.place; });
         refuses([](ReduceScatter& call) { call.staging.offset += 1 << 20; });
         communicator.reduce_scatter(good, *stream);  // what one rank refuses alone poisons nothing
       })) {
    EXPECT_EQ(message, "");
  }
}

TEST(StagedReduceScatter, NamesWhoHasOtherStaging) {
  CpuDevice device;
  for (const std::string& message : messages_of_ranks(3, [&](Communicator& communicator) {
         Room room(communicator, device, 4096);
         const auto stream = device.make_stream();
         ReduceScatter call = room.reduction(1024, DType::f32, piece_of(1024, communicator.rank(), 3));
         if (communicator.rank() == 1) call.staging_bytes = 512;
         communicator.reduce_scatter(call, *stream);
       })) {
    EXPECT_NE(message.find("rank 1 calls it with staging bytes 512, rank 0 with staging bytes 8192"), std::string::npos)
        << message;
  }
}

TEST(StagedArenas, AreTheRanksOwn) {
  CpuDevice device;
  for (const std::string& message : messages_of_ranks(2, [&](Communicator& communicator) {
         EXPECT_FALSE(communicator.reads_peers());
         const auto arena = communicator.make_arena(device, {.tier = MemoryTier::device, .bytes = 1_MiB});
         EXPECT_EQ(arena->peer(communicator.rank()), arena->data());
         EXPECT_THROW(arena->peer(1 - communicator.rank()), CheckFailure);
       })) {
    EXPECT_EQ(message, "");
  }
}

// Groups share their messages: calls in another order are not mistaken for each other.
TEST(StagedGroups, CalledInAnotherOrderAreNamed) {
  for (const std::string& message : messages_of_ranks(2, [&](Communicator& world) {
         const auto part = world.split(0, 0);
         (world.rank() == 0 ? world : *part).barrier();
       })) {
    EXPECT_NE(message.find("rank 1 calls barrier of another group than rank 0"), std::string::npos) << message;
  }
}

// A transport may bring words that no family has said.
TEST(StagedFailures, OfAForeignPeerAreItsOwn) {
  auto exchanges = make_thread_exchanges(2, 60s);
  exchanges[1]->give_up("the disk is full");
  const auto world = make_staged_communicator(std::move(exchanges[0]));
  try {
    world->barrier();
    ADD_FAILURE();
  } catch (const CommunicationError& error) {
    EXPECT_EQ(error.rank(), 1);
    EXPECT_EQ(error.operation(), "abort");
    EXPECT_NE(std::string(error.what()).find("the disk is full"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace shardplan::test
