#include "tools/train/text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include "base/error.h"
#include "tests/tools/train/model_state.h"

namespace shardplan {
namespace {

using Bytes8 = std::vector<std::uint8_t>;

// 0, 1, ... 255, 0, 1, ...: each window tells where it starts.
Bytes8 counting(std::size_t size) {
  Bytes8 bytes(size);
  std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
  return bytes;
}

Bytes8 sampled(const Text& text, const BatchKey& key, std::size_t windows) {
  Bytes8 batch(windows * text.window_bytes());
  text.sample(key, batch);
  return batch;
}

TEST(Text, TheLastTenthIsHeldOut) {
  const Text text(counting(109), 4, "test");
  EXPECT_EQ(text.training().size(), 99U);
  EXPECT_EQ(text.held_out().size(), 10U);
  EXPECT_EQ(text.training().front(), 0);
  EXPECT_EQ(text.held_out().front(), 99);
}

TEST(Text, ATextWithoutAWindowToHoldOutIsRefused) {
  EXPECT_NO_THROW(Text(counting(50), 4, "short.txt"));
  try {
    const Text text(counting(49), 4, "short.txt");
    FAIL() << "49 bytes hold out 4";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.source(), "short.txt");
    EXPECT_NE(error.problem().find("needs 50"), std::string::npos) << error.what();
  }
}

TEST(Text, ReadsAFileAsItIs) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "shardplan_text_test.bin";
  const Bytes8 bytes = counting(3000);
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), 3000);
  const Text text = Text::read(path, 16);
  EXPECT_TRUE(std::ranges::equal(text.training(), std::span(bytes).first(2700)));
  EXPECT_TRUE(std::ranges::equal(text.held_out(), std::span(bytes).last(300)));
  std::filesystem::remove(path);
  EXPECT_THROW(Text::read(path, 16), IoError);
}

TEST(Text, ADirectoryIsNoText) {
  EXPECT_THROW(Text::read(testing::TempDir(), 16), IoError);
}

TEST(Text, SamplesAreWindowsOfTheTrainingPart) {
  const Text text(counting(200), 9, "test");
  std::set<int> starts;
  const Bytes8 batch = sampled(text, {.seed = 4}, 3000);
  for (std::size_t i = 0; i < batch.size(); i += 10) {
    starts.insert(batch[i]);
    for (std::size_t j = 1; j < 10; ++j) ASSERT_EQ(batch[i + j], batch[i] + j);
  }
  // 3000 draws reach every start, and none whose window ends in the held-out part.
  EXPECT_EQ(*starts.begin(), 0);
  EXPECT_EQ(*starts.rbegin(), 170);
  EXPECT_EQ(starts.size(), 171U);
}

TEST(Text, TheOrderIsAFunctionOfTheKeyAlone) {
  const Text text(test::words(20000, 1), 32, "words");
  const BatchKey key{.seed = 1, .step = 2, .micro_batch = 3, .rank = 4};
  const Bytes8 batch = sampled(text, key, 8);
  sampled(text, {.seed = 9}, 5);
  EXPECT_EQ(sampled(text, key, 8), batch);
  const Bytes8 more = sampled(text, key, 12);
  EXPECT_TRUE(std::equal(batch.begin(), batch.end(), more.begin()));

  std::set<Bytes8> different;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    for (std::uint64_t step = 0; step < 3; ++step) {
      for (std::uint64_t micro_batch = 0; micro_batch < 3; ++micro_batch) {
        for (std::uint64_t rank = 0; rank < 3; ++rank)
          different.insert(sampled(text, {seed, step, micro_batch, rank}, 8));
      }
    }
  }
  EXPECT_EQ(different.size(), 81U);
}

TEST(Text, HeldOutWindowsPredictEachByteOnce) {
  const Text text(counting(2000), 9, "test");  // 200 held out: the first, 22 windows of 9, and one left over
  ASSERT_EQ(text.held_out_windows(), 22U);
  std::vector<int> predicted(200, 0);
  Bytes8 window(10);
  for (std::size_t i = 0; i < 22; ++i) {
    text.copy_held_out(i, window);
    for (std::size_t j = 0; j < 10; ++j) ASSERT_EQ(window[j], text.held_out()[9 * i + j]);
    for (std::size_t j = 1; j < 10; ++j) ++predicted[9 * i + j];
  }
  EXPECT_EQ(std::ranges::count(predicted, 1), 198);
  Bytes8 batch(30);
  text.copy_held_out(19, batch);
  EXPECT_TRUE(std::equal(window.begin(), window.end(), batch.begin() + 20));
  EXPECT_THROW(text.copy_held_out(20, batch), CheckFailure);
}

TEST(Text, BigramEntropyByHand) {
  // Training "abababababababababa" (19 bytes: 9 times ab, 9 times ba); held out "ba".
  Bytes8 bytes;
  for (int i = 0; i < 18; ++i) bytes.push_back(i % 2 == 0 ? 'a' : 'b');
  bytes.push_back('a');
  bytes.push_back('b');
  bytes.push_back('a');
  const Text text(bytes, 1, "test");
  ASSERT_EQ(text.training().size(), 19U);
  EXPECT_NEAR(bigram_entropy(text), -std::log((9.0 + 1) / (9 + 256)), 1e-12);
}

}  // namespace
}  // namespace shardplan
