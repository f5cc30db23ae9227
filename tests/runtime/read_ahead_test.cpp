// What is asked for is what the file holds, however it is asked for; what comes next is on its way by then, and little else.
#include "runtime/files/read_ahead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace shardplan::test {
namespace {

constexpr std::uint64_t kPage = kFileAlignment;

std::byte byte_at(std::uint64_t offset) {
  return static_cast<std::byte>((offset * 2654435761U) >> 13U);
}

// What was read of a file, where somebody can still see it.
struct Reads {
  // Until `count` reads have begun, or some seconds. Whether they have.
  bool wait_for(std::size_t count) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds{20}, [&] { return ranges.size() >= count; });
  }
  std::uint64_t bytes() {
    const std::lock_guard lock(mutex);
    return std::accumulate(ranges.begin(), ranges.end(), std::uint64_t{0},
                           [](std::uint64_t sum, const auto& range) { return sum + range.second - range.first; });
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;  // first byte and end, in the order of reading
  std::uint64_t bad_byte = ~std::uint64_t{0};                   // a read of it fails
};

class SeenFile final : public InputFile {
 public:
  SeenFile(Reads& reads, std::uint64_t bytes) : reads_(reads), bytes_(bytes) {}
  std::uint64_t bytes() const override { return bytes_; }
  void read(std::uint64_t offset, std::span<std::byte> to) const override {
    if (offset + to.size() > bytes_) throw IoError("seen", bytes_, 0, "ends here");
    EXPECT_EQ(offset % kPage, 0U);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(to.data()) % kPage, 0U);
    {
      const std::lock_guard lock(reads_.mutex);
      reads_.ranges.emplace_back(offset, offset + to.size());
      if (offset <= reads_.bad_byte && reads_.bad_byte < offset + to.size()) {
        throw IoError("seen", reads_.bad_byte, EIO, "cannot be read");
      }
    }
    reads_.changed.notify_all();
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = byte_at(offset + i);
  }

 private:
  Reads& reads_;
  std::uint64_t bytes_;
};

class Asked {
 public:
  Asked(std::uint64_t bytes, std::uint64_t until, std::size_t buffer = 4 * kPage, std::size_t buffers = 3)
      : ahead_(std::make_unique<SeenFile>(reads, bytes), until, buffer, buffers) {}
  explicit Asked(std::uint64_t bytes) : Asked(bytes, bytes) {}

  void spoil(std::uint64_t byte) {
    const std::lock_guard lock(reads.mutex);
    reads.bad_byte = byte;
  }
  // Whether all of them are the file's.
  void ask(std::uint64_t offset, std::uint64_t count) {
    std::vector<std::byte> got(count);
    ahead_.read(offset, got);
    std::uint64_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i) wrong += got[i] == byte_at(offset + i) ? 0U : 1U;
    EXPECT_EQ(wrong, 0U) << "of " << count << " bytes at " << offset;
  }

  Reads reads;

 private:
  ReadAhead ahead_;
};

TEST(ReadAhead, AFileThatIsReadInARowIsReadOnce) {
  for (const std::uint64_t piece : {std::uint64_t{1000}, kPage, 4 * kPage, 4 * kPage + 24, 50 * kPage}) {
    constexpr std::uint64_t kBytes = 100 * kPage + 17;
    Asked file(kBytes);
    for (std::uint64_t at = 0; at < kBytes; at += piece) file.ask(at, std::min(piece, kBytes - at));
    std::uint64_t expected = 0;
    for (const auto& [begin, end] : file.reads.ranges) {
      EXPECT_EQ(begin, expected) << "piece " << piece;
      expected = end;
    }
    EXPECT_EQ(expected, kBytes);
  }
}

TEST(ReadAhead, AnythingMayBeAskedForInAnyOrder) {
  std::mt19937 random(1);
  constexpr std::uint64_t kBytes = 300 * kPage + 5;
  for (int trial = 0; trial < 20; ++trial) {
    Asked file(kBytes, random() % 2 == 0 ? kBytes : random() % kBytes, (1 + random() % 4) * kPage, 2 + random() % 3);
    std::uint64_t at = random() % kBytes;
    for (int i = 0; i < 200; ++i) {
      const std::uint64_t count = 1 + random() % std::min<std::uint64_t>(12 * kPage, kBytes - at);
      file.ask(at, count);
      at = random() % 4 == 0 ? random() % kBytes : at + count + (random() % 4 == 0 ? random() % (2 * kPage) : 0);
      if (at >= kBytes) at = random() % kBytes;
    }
  }
}

TEST(ReadAhead, WhatComesNextIsOnItsWay) {
  Asked file(100 * kPage);
  file.ask(0, kPage);
  EXPECT_EQ(file.reads.ranges.size(), 1U);  // nobody knows yet that more is wanted
  file.ask(kPage, 4 * kPage);
  file.ask(5 * kPage, 4 * kPage);
  EXPECT_TRUE(file.reads.wait_for(4)) << "nothing is read before it is asked for";
}

TEST(ReadAhead, NoMoreIsReadThanWasAskedForInARow) {
  constexpr std::uint64_t kBytes = 8000 * kPage;
  // 64 pages of every 1024: what other ranks need is left alone.
  std::uint64_t asked = 0;
  {
    Asked file(kBytes);
    for (std::uint64_t begin = 0; begin < kBytes; begin += 1024 * kPage) {
      for (std::uint64_t part = 0; part < 64; part += 2) file.ask(begin + part * kPage, 2 * kPage);
      asked += 64 * kPage;
    }
    EXPECT_LE(file.reads.bytes(), asked + 8 * (3 * 4 * kPage));  // the buffers, at each end of a row
  }
  // Gaps as long as what is asked for, or twice as long: they are read where that is no more than twice the bytes.
  for (const std::uint64_t gap : {3U, 6U}) {
    std::uint64_t wanted = 0;
    Asked file(kBytes);
    for (std::uint64_t begin = 0; begin + 3 * kPage <= kBytes; begin += (3 + gap) * kPage, wanted += 3 * kPage) {
      file.ask(begin, 3 * kPage);
    }
    EXPECT_LE(file.reads.bytes(), (gap > 3 ? 1 : 2) * wanted + 3 * 4 * kPage) << "gap " << gap;
  }
  // A page here and a page there.
  Asked jumping(kBytes);
  for (std::uint64_t i = 0; i < 100; ++i) jumping.ask(i * 37 % 100 * 80 * kPage, kPage);
  EXPECT_EQ(jumping.reads.bytes(), 100 * kPage);
}

TEST(ReadAhead, NothingIsReadAheadWhereItEnds) {
  Asked file(100 * kPage, 10 * kPage + 3);
  for (std::uint64_t page = 0; page < 10; ++page) file.ask(page * kPage, kPage);
  file.ask(10 * kPage, 3);
  EXPECT_EQ(file.reads.bytes(), 11 * kPage);
  file.ask(10 * kPage + 3, kPage);  // but what is asked for is given
}

TEST(ReadAhead, AFailureIsToldToWhoAsksForThoseBytesAndIsNotTheEnd) {
  Asked file(100 * kPage);
  file.spoil(22 * kPage + 7);
  std::vector<std::uint64_t> failed;
  for (std::uint64_t page = 0; page < 100; ++page) {
    try {
      file.ask(page * kPage, kPage);
    } catch (const IoError& error) {
      EXPECT_EQ(error.error_number(), EIO);
      failed.push_back(page);
    }
  }
  EXPECT_EQ(failed, std::vector<std::uint64_t>{22});
  EXPECT_THROW(file.ask(20 * kPage, 30 * kPage), IoError);
  file.spoil(~std::uint64_t{0});
  file.ask(20 * kPage, 30 * kPage);
}

TEST(ReadAhead, BytesBehindTheEndAreAnError) {
  Asked file(10 * kPage);
  EXPECT_THROW(file.ask(8 * kPage, 3 * kPage), IoError);
  EXPECT_THROW(file.ask(20 * kPage, 1), IoError);
  file.ask(8 * kPage, 2 * kPage);
}

}  // namespace
}  // namespace shardplan::test
