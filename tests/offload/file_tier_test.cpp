// What only a file does: it is made, reserved, locked, removed, and can be spoilt by others.
#include "offload/file_tier.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

using test_support::TemporaryFolder;

template <typename Act>
std::optional<IoError> io_error_of(Act&& act) {
  try {
    act();
  } catch (const IoError& error) {
    return error;
  }
  return std::nullopt;
}

TEST(FileTier, HasItsSpaceFromTheStartAndIsGoneAtTheEnd) {
  const TemporaryFolder folder;
  {
    const FileTier tier({.path = folder.path("rank-0"), .bytes = 3_MiB});
    struct stat status{};
    ASSERT_EQ(stat(folder.path("rank-0").c_str(), &status), 0);
    EXPECT_EQ(status.st_size, 3 << 20);
    EXPECT_GE(status.st_blocks * 512, 3 << 20);
  }
  EXPECT_FALSE(std::filesystem::exists(folder.path("rank-0")));
}

TEST(FileTier, ADiskThatIsTooSmallIsFoundAtTheStart) {
  const TemporaryFolder folder;
  try {
    const FileTier tier({.path = folder.path("rank-0"), .bytes = Bytes{std::uint64_t{1} << 60}});
    FAIL() << "a tier of 2^60 bytes";
  } catch (const OutOfMemory& error) {
    EXPECT_EQ(error.requested(), Bytes{std::uint64_t{1} << 60});
    EXPECT_GT(error.available(), 0_B);
    EXPECT_NE(std::string(error.what()).find(folder.path("rank-0")), std::string::npos) << error.what();
  }
  EXPECT_FALSE(std::filesystem::exists(folder.path("rank-0")));
}

TEST(FileTier, AFolderThatIsNotThereIsAnErrorWithThePath) {
  const TemporaryFolder folder;
  const std::string path = folder.path("no") + "/rank-0";
  const auto error = io_error_of([&] { const FileTier tier({.path = path, .bytes = 1_MiB}); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->path(), path);
  EXPECT_EQ(error->error_number(), ENOENT);
}

TEST(FileTier, TwoNeverShareAFile) {
  const TemporaryFolder folder;
  const FileTier tier({.path = folder.path("rank-0"), .bytes = 1_MiB});
  const auto error = io_error_of([&] { const FileTier second({.path = folder.path("rank-0"), .bytes = 1_MiB}); });
  ASSERT_TRUE(error);
  EXPECT_NE(std::string(error->what()).find("in use"), std::string::npos) << error->what();
  EXPECT_TRUE(std::filesystem::exists(folder.path("rank-0")));
}

TEST(FileTier, WhatAKilledProcessLeftIsTakenOver) {
  const TemporaryFolder folder;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    FileTier tier({.path = folder.path("rank-0"), .bytes = 8_MiB});
    const std::vector<std::byte> ones(4096, std::byte{1});
    tier.write(0, ones);
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  ASSERT_TRUE(std::filesystem::exists(folder.path("rank-0")));
  FileTier tier({.path = folder.path("rank-0"), .bytes = 1_MiB});
  std::vector<std::byte> bytes(4096, std::byte{7});
  tier.read(0, bytes);
  EXPECT_EQ(bytes, std::vector<std::byte>(4096));
  EXPECT_EQ(std::filesystem::file_size(folder.path("rank-0")), 1U << 20);
}

TEST(FileTier, SaysThatItWasRemoved) {
  const TemporaryFolder folder;
  FileTier tier({.path = folder.path("rank-0"), .bytes = 1_MiB});
  tier.check();
  ASSERT_EQ(unlink(folder.path("rank-0").c_str()), 0);
  const auto error = io_error_of([&] { tier.check(); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->path(), folder.path("rank-0"));
  EXPECT_NE(std::string(error->what()).find("removed"), std::string::npos) << error->what();
}

TEST(FileTier, SaysWhereItWasCutShort) {
  const TemporaryFolder folder;
  for (const bool direct : {true, false}) {
    FileTier tier({.path = folder.path("rank-0"), .bytes = 1_MiB, .direct = direct});
    ASSERT_EQ(truncate(folder.path("rank-0").c_str(), 300'000), 0);
    const auto checked = io_error_of([&] { tier.check(); });
    ASSERT_TRUE(checked);
    EXPECT_EQ(checked->offset(), 300'000U);
    alignas(4096) static std::byte bytes[8192];
    const auto read = io_error_of([&] { tier.read(294'912, bytes); });  // 72 x 4096
    ASSERT_TRUE(read);
    EXPECT_EQ(read->path(), folder.path("rank-0"));
    EXPECT_EQ(read->offset(), 300'000U);
    EXPECT_EQ(read->error_number(), 0);
  }
}

TEST(FileTier, LeavesAnotherFileThatSomebodyPutInItsPlace) {
  const TemporaryFolder folder;
  {
    const FileTier tier({.path = folder.path("rank-0"), .bytes = 1_MiB});
    ASSERT_EQ(unlink(folder.path("rank-0").c_str()), 0);
    folder.write("rank-0", "not ours");
  }
  EXPECT_TRUE(std::filesystem::exists(folder.path("rank-0")));
}

// A limit on the size of files is a disk that fills up, as far as the calls can tell.
TEST(FileTier, AFullDiskIsAnErrorWithPathAndOffset) {
  const TemporaryFolder folder;
  const std::string path = folder.path("rank-0");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    FileTier tier({.path = path, .bytes = 1_MiB, .direct = false});
    const rlimit limit{65'536, 65'536};
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::vector<std::byte> bytes(8192, std::byte{1});
    try {
      tier.write(61'440, bytes);  // the first half has room
      _exit(1);
    } catch (const IoError& error) {
      _exit(error.path() == path && error.offset() == 65'536 && error.error_number() == EFBIG ? 0 : 2);
    }
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

// Pages of a file that are in the page cache. Asked by mincore, which reads none; a read with RWF_NOWAIT may read ahead.
std::size_t cached_pages(const std::string& path, std::size_t bytes) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  void* const mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  EXPECT_NE(mapped, MAP_FAILED);
  std::vector<unsigned char> pages(bytes / static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
  EXPECT_EQ(mincore(mapped, bytes, pages.data()), 0);
  munmap(mapped, bytes);
  return static_cast<std::size_t>(
      std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1U) != 0; }));
}

TEST(FileTier, OnlyDirectTransfersLeaveNothingInThePageCache) {
  constexpr std::size_t kSize = std::size_t{8} << 20;
  alignas(4096) static std::byte bytes[1 << 20];
  for (const bool direct : {false, true}) {
    const TemporaryFolder folder;
    FileTier tier({.path = folder.path("rank-0"), .bytes = Bytes{kSize}, .direct = direct});
    ASSERT_TRUE(direct || !tier.direct());
    for (std::uint64_t at = 0; at < kSize; at += sizeof bytes) tier.write(at, bytes);
    // Where the file system refuses direct I/O, the tier says that it is buffered, and is.
    EXPECT_EQ(cached_pages(folder.path("rank-0"), kSize) == 0, tier.direct());
  }
}

}  // namespace
}  // namespace shardplan::test
