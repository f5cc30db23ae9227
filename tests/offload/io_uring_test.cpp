// Pieces that are under way at once: all of a range, or where it stopped.
#include "offload/io_uring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "runtime/host_memory.h"
#include "tests/support/io_uring.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

// What skips the others must not be a build that lost it.
#if __has_include(<liburing.h>) && !defined(SHARDPLAN_WITHOUT_IO_URING)
TEST(IoUringBuild, HasItWhereLiburingIs) {
  EXPECT_EQ(no_io_uring().find("this build"), std::string::npos) << no_io_uring();
}
#endif

// Where it is refused, whoever asks for it is told why, and what else there is.
TEST(IoUringBuild, IsThereOrSaysWhyNot) {
  const std::string refused = no_io_uring();
  const bool says_why = refused.find("io_uring: ") == 0 && refused.find("expected pread") != std::string::npos;
  EXPECT_TRUE(refused.empty() || says_why) << refused;
}

// With so many rings, where there are any.
std::vector<int> numbers_of_rings() {
  return no_io_uring().empty() ? std::vector<int>{1, 2} : std::vector<int>{};
}

class IoUring : public ::testing::TestWithParam<int> {
 protected:
  Descriptor open_new(const std::string& name) {
    return Descriptor(open(folder_.path(name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR));
  }

 private:
  test_support::TemporaryFolder folder_;
};

std::vector<std::byte> random_bytes(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// More pieces than are under way at once, and a last one that is short.
constexpr std::size_t kMany = (std::size_t{21} << 20) + 12'345;

TEST_P(IoUring, AllOfARangeIsMoved) {
  IoUrings rings(GetParam());
  const Descriptor file = open_new("file");
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{512} << 10, kMany}) {
    const std::vector<std::byte> written = random_bytes(bytes, bytes);
    ASSERT_EQ(rings.write(file.get(), written.data(), bytes, 777), static_cast<ssize_t>(bytes));
    std::vector<std::byte> found(bytes);
    ASSERT_EQ(pread(file.get(), found.data(), bytes, 777), static_cast<ssize_t>(bytes));
    EXPECT_EQ(found, written);
    found.assign(bytes, std::byte{});
    ASSERT_EQ(rings.read(file.get(), found.data(), bytes, 777), static_cast<ssize_t>(bytes));
    EXPECT_EQ(found, written);
  }
}

TEST_P(IoUring, WhatStopsEarlySaysWhere) {
  IoUrings rings(GetParam());
  const Descriptor file = open_new("file");
  const std::vector<std::byte> written = random_bytes(kMany, 1);
  std::vector<std::byte> found(kMany);
  for (const std::size_t length : {std::size_t{3} << 20, (std::size_t{9} << 20) + 100}) {
    ASSERT_EQ(ftruncate(file.get(), 0), 0);
    ASSERT_EQ(rings.write(file.get(), written.data(), length, 0), static_cast<ssize_t>(length));
    EXPECT_EQ(rings.read(file.get(), found.data(), kMany, 0), static_cast<ssize_t>(length));
    EXPECT_EQ(rings.read(file.get(), found.data(), 100, length), 0);
  }
  errno = 0;
  EXPECT_EQ(rings.read(-1, found.data(), kMany, 0), -1);
  EXPECT_EQ(errno, EBADF);
  // And is as good as new.
  EXPECT_EQ(rings.read(file.get(), found.data(), 1000, 0), 1000);
}

TEST_P(IoUring, CallersMayBeMoreThanRings) {
  IoUrings rings(GetParam());
  const Descriptor file = open_new("file");
  constexpr std::size_t kPart = std::size_t{3} << 20;
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&, caller] {
      std::vector<std::byte> found(kPart);
      for (std::uint64_t round = 0; round < 4; ++round) {
        const std::vector<std::byte> written = random_bytes(kPart, 10 * caller + round);
        const std::uint64_t offset = caller * kPart;
        wrong += rings.write(file.get(), written.data(), kPart, offset) == static_cast<ssize_t>(kPart) ? 0 : 1;
        wrong += rings.read(file.get(), found.data(), kPart, offset) == static_cast<ssize_t>(kPart) ? 0 : 1;
        wrong += found == written ? 0 : 1;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(IoUring);
INSTANTIATE_TEST_SUITE_P(Rings, IoUring, ::testing::ValuesIn(numbers_of_rings()), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace shardplan::test
