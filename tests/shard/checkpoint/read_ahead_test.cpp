// What a file is told of what is read next.
#include "shard/checkpoint/read_ahead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace shardplan::test {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

// Remembers what it was told.
class ToldFile final : public InputFile {
 public:
  explicit ToldFile(std::uint64_t bytes) : bytes_(bytes) {}
  std::uint64_t bytes() const override { return bytes_; }
  void read(std::uint64_t /*offset*/, std::span<std::byte> /*to*/) const override {}
  void expect(std::uint64_t offset, std::uint64_t bytes) const override { told.emplace_back(offset, offset + bytes); }
  mutable std::vector<std::pair<std::uint64_t, std::uint64_t>> told;

 private:
  std::uint64_t bytes_;
};

TEST(ReadAhead, AFileThatIsReadInARowIsToldOnceOfEveryByte) {
  for (const std::uint64_t block : {kMiB / 16, kMiB, 4 * kMiB, 4 * kMiB + 24}) {
    const ToldFile file(100 * kMiB + 17);
    ReadAhead ahead;
    std::uint64_t late = 0;  // bytes that were read before they were announced
    for (std::uint64_t begin = 0; begin < file.bytes(); begin += block) {
      const std::uint64_t end = std::min(file.bytes(), begin + block);
      const std::uint64_t told = file.told.empty() ? 0 : file.told.back().second;
      late += end > told ? end - std::max(begin, told) : 0;
      ahead.next(file, begin, end);
    }
    EXPECT_LE(late, 4 * block) << "block " << block;
    EXPECT_LE(file.told.size(), 100U);
    for (std::size_t i = 1; i < file.told.size(); ++i) EXPECT_LE(file.told[i - 1].second, file.told[i].first);
    EXPECT_EQ(file.told.back().second, file.bytes());
  }
}

TEST(ReadAhead, NoMoreIsAskedForThanWasReadInARow) {
  const ToldFile file(1000 * kMiB);
  ReadAhead ahead;
  // 8 MiB of every 32: what other ranks need is left alone.
  for (std::uint64_t begin = 0; begin < file.bytes(); begin += 32 * kMiB) {
    for (std::uint64_t part = 0; part < 8 * kMiB; part += kMiB) ahead.next(file, begin + part, begin + part + kMiB);
  }
  std::uint64_t asked = 0;
  for (const auto& [begin, end] : file.told) asked += end - begin;
  EXPECT_GT(asked, file.bytes() / 8);
  EXPECT_LE(asked, file.bytes() / 2);
  // One block here and one there.
  const ToldFile other(1000 * kMiB);
  ReadAhead jumping;
  for (std::uint64_t i = 0; i < 100; ++i)
    jumping.next(other, i * 37 % 100 * 10 * kMiB, i * 37 % 100 * 10 * kMiB + kMiB);
  EXPECT_TRUE(other.told.empty());
}

}  // namespace
}  // namespace shardplan::test
