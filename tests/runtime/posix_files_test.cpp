// What only files of this machine do: they take room.
#include "runtime/files/posix_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>

#include "base/error.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

using test_support::TemporaryFolder;

constexpr std::size_t kBytes = (std::size_t{6} << 20) + 777;

TEST(PosixFiles, RoomIsTakenBeforeTheFirstByte) {
  const TemporaryFolder folder;
  for (const FileWrites writes : {FileWrites::direct, FileWrites::buffered}) {
    const std::string path = folder.path(writes == FileWrites::direct ? "direct" : "buffered");
    PosixFiles files(writes);
    const auto file = files.create(path);
    file->reserve(kBytes);
    struct stat status{};
    ASSERT_EQ(stat(path.c_str(), &status), 0);
    EXPECT_GE(static_cast<std::size_t>(status.st_blocks) * 512, kBytes);
    const FileBuffer buffer(kBytes);
    file->write(buffer.bytes().first(kBytes));
    file->sync();
    ASSERT_EQ(stat(path.c_str(), &status), 0);
    EXPECT_EQ(static_cast<std::size_t>(status.st_size), kBytes);
  }
  PosixFiles files;
  const auto file = files.create(folder.path("large"));
  try {
    file->reserve(std::uint64_t{1} << 60);
    FAIL() << "room for 2^60 bytes";
  } catch (const IoError& error) {
    EXPECT_EQ(error.path(), folder.path("large"));
    EXPECT_TRUE(error.error_number() == ENOSPC || error.error_number() == EFBIG) << error.what();
  }
}

}  // namespace
}  // namespace shardplan::test
