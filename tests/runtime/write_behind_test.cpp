// What is handed in is written in order, by another thread; what goes wrong there is told here.
#include "runtime/files/write_behind.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <random>
#include <string>
#include <thread>

#include "base/error.h"

namespace shardplan::test {
namespace {

// What was written, where somebody can still see it.
struct Written {
  std::string bytes;
  int writes = 0;
  int syncs = 0;
};

class SlowFile final : public OutputFile {
 public:
  SlowFile(Written& written, int fails_at) : written_(written), fails_at_(fails_at) {}
  void write(std::span<const std::byte> bytes) override {
    std::this_thread::sleep_for(std::chrono::microseconds{200});
    if (written_.writes == fails_at_) throw IoError("slow", written_.bytes.size(), ENOSPC, "cannot be written");
    ++written_.writes;
    written_.bytes.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  void sync() override { ++written_.syncs; }

 private:
  Written& written_;
  int fails_at_;
};

constexpr std::size_t kBuffer = 4096;

// Hands in `text` in pieces of 1 to kBuffer bytes.
void hand_in(WriteBehind& file, const std::string& text, std::mt19937& random) {
  for (std::size_t at = 0; at < text.size();) {
    const std::span<std::byte> room = file.room();
    ASSERT_EQ(room.size(), kBuffer);
    const std::size_t count = std::min<std::size_t>(1 + random() % kBuffer, text.size() - at);
    std::copy_n(reinterpret_cast<const std::byte*>(text.data()) + at, count, room.begin());
    file.hand_in(count);
    at += count;
  }
}

std::string some_text(std::size_t length) {
  std::string text(length, '\0');
  for (std::size_t i = 0; i < length; ++i) text[i] = static_cast<char>(i * 2654435761U >> 13U);
  return text;
}

TEST(WriteBehind, EverythingIsWrittenInOrder) {
  for (const std::size_t buffers : {2U, 3U, 5U}) {
    std::mt19937 random(static_cast<unsigned>(buffers));
    for (const std::size_t length : {0U, 1U, 4096U, 300'000U}) {
      const std::string text = some_text(length);
      Written written;
      {
        WriteBehind file(std::make_unique<SlowFile>(written, -1), kBuffer, buffers);
        hand_in(file, text, random);
        file.finish();
        EXPECT_EQ(written.bytes, text);
        EXPECT_EQ(written.syncs, 1);
      }
      EXPECT_EQ(written.bytes, text);
    }
  }
}

TEST(WriteBehind, AFailureIsToldAndNothingMoreIsWritten) {
  for (const int fails_at : {0, 3}) {
    std::mt19937 random(7);
    Written written;
    WriteBehind file(std::make_unique<SlowFile>(written, fails_at), kBuffer, 2);
    const std::string text = some_text(100'000);
    EXPECT_THROW(hand_in(file, text, random), IoError);
    EXPECT_THROW(file.room(), IoError);
    EXPECT_THROW(file.finish(), IoError);
    EXPECT_EQ(written.writes, fails_at);
    EXPECT_EQ(written.syncs, 0);
    EXPECT_TRUE(text.starts_with(written.bytes));
  }
}

TEST(WriteBehind, WhoGivesUpDoesNotSync) {
  Written written;
  {
    WriteBehind file(std::make_unique<SlowFile>(written, -1), kBuffer, 8);
    for (int i = 0; i < 8; ++i) {
      file.room();
      file.hand_in(1);
    }
  }
  EXPECT_EQ(written.syncs, 0);
  EXPECT_THROW(WriteBehind(std::make_unique<SlowFile>(written, -1), kBuffer, 1), CheckFailure);
}

}  // namespace
}  // namespace shardplan::test
