#include "offload/block_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "offload/failing_tier.h"
#include "offload/host_tier.h"
#include "runtime/cpu_device.h"

namespace shardplan::test {
namespace {

constexpr std::size_t kBlock = 8192;

struct Fixture {
  CpuDevice cpu;
  std::unique_ptr<HostTier> made = std::make_unique<HostTier>(cpu, Bytes{4 * kBlock});
  HostTier& host = *made;
  FailingTier tier{std::move(made)};
  std::array<BlockRecord, 4> records{};
  BlockStore store{tier, records};
};

std::vector<std::byte> bytes_of(int seed) {
  std::vector<std::byte> bytes(kBlock);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(i * 31 + static_cast<std::size_t>(seed));
  }
  return bytes;
}

Block block(std::uint64_t index) {
  return {.index = index, .offset = index * kBlock};
}

std::optional<IoError> error_of_read(BlockStore& store, std::uint64_t index, std::uint64_t step) {
  std::vector<std::byte> bytes(kBlock);
  try {
    store.read(block(index), bytes, step);
  } catch (const IoError& error) {
    return error;
  }
  return std::nullopt;
}

TEST(BlockStore, GivesBackWhatWasWritten) {
  Fixture f;
  for (std::uint64_t i = 0; i < 4; ++i) f.store.write(block(i), bytes_of(static_cast<int>(i)), 7 + i);
  for (std::uint64_t i = 0; i < 4; ++i) {
    std::vector<std::byte> bytes(kBlock);
    f.store.read(block(i), bytes, 7 + i);
    EXPECT_EQ(bytes, bytes_of(static_cast<int>(i)));
    EXPECT_EQ(f.store.step_of(i), 7 + i);
  }
}

TEST(BlockStore, EveryFlippedBitIsFound) {
  Fixture f;
  const std::vector<std::byte> written = bytes_of(3);
  for (std::size_t bit = 0; bit < 8 * kBlock; bit += 131) {
    f.store.write(block(2), written, 1);
    std::byte byte = written[bit / 8] ^ static_cast<std::byte>(1 << (bit % 8));
    f.host.write(2 * kBlock + bit / 8, {&byte, 1});
    const auto error = error_of_read(f.store, 2, 1);
    ASSERT_TRUE(error) << "bit " << bit;
    EXPECT_EQ(error->offset(), 2 * kBlock);
    EXPECT_EQ(error->path(), f.host.name());
    EXPECT_NE(std::string(error->what()).find("checksum"), std::string::npos);
  }
}

// A write that was acknowledged and lost leaves an older block, with a checksum that was right once.
TEST(BlockStore, AnOlderBlockInItsPlaceIsFound) {
  Fixture f;
  f.store.write(block(1), bytes_of(1), 5);
  std::vector<std::byte> older(kBlock);
  f.host.read(kBlock, older);
  f.store.write(block(1), bytes_of(2), 6);
  f.host.write(kBlock, older);
  EXPECT_TRUE(error_of_read(f.store, 1, 6));
}

TEST(BlockStore, ABlockOfAnotherStepIsAnErrorWithBothNumbers) {
  Fixture f;
  f.store.write(block(1), bytes_of(1), 5);
  const auto error = error_of_read(f.store, 1, 6);
  ASSERT_TRUE(error);
  EXPECT_NE(std::string(error->what()).find("holds step 5: expected step 6"), std::string::npos) << error->what();
}

TEST(BlockStore, AFailedWriteLeavesTheRecordAndCanBeRepeated) {
  for (const TierFault fault : {TierFault::io_error, TierFault::no_space, TierFault::short_write}) {
    Fixture f;
    f.store.write(block(0), bytes_of(1), 1);
    f.tier.arm(fault, 1);
    EXPECT_THROW(f.store.write(block(0), bytes_of(2), 2), IoError);
    EXPECT_EQ(f.store.step_of(0), 1U);
    EXPECT_EQ(error_of_read(f.store, 0, 1).has_value(), fault == TierFault::short_write);  // a torn block
    f.store.write(block(0), bytes_of(2), 2);
    EXPECT_FALSE(error_of_read(f.store, 0, 2));
  }
}

TEST(BlockStore, FaultsOfReadsPassOnAreNamedAndPass) {
  for (const TierFault fault : {TierFault::io_error, TierFault::short_read, TierFault::read_flip}) {
    Fixture f;
    f.store.write(block(3), bytes_of(1), 1);
    f.tier.arm(fault, 1);
    const auto error = error_of_read(f.store, 3, 1);
    ASSERT_TRUE(error);
    EXPECT_GE(error->offset(), 3 * kBlock);
    EXPECT_FALSE(error_of_read(f.store, 3, 1));
  }
}

TEST(BlockStore, AWriteThatLiesIsFoundByTheRead) {
  Fixture f;
  f.tier.arm(TierFault::write_flip, 1);
  f.store.write(block(0), bytes_of(1), 1);
  EXPECT_TRUE(error_of_read(f.store, 0, 1));
}

TEST(BlockStore, MisuseIsACheckFailure) {
  Fixture f;
  std::vector<std::byte> bytes(kBlock);
  EXPECT_THROW(f.store.read(block(0), bytes, 0), CheckFailure);  // never written
  EXPECT_THROW(f.store.write(block(4), bytes, 0), CheckFailure);
  f.store.write(block(0), bytes, 0);
  EXPECT_THROW(f.store.read(block(0), std::span(bytes).first(100), 0), CheckFailure);
}

}  // namespace
}  // namespace shardplan::test
