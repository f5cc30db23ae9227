#include "offload/file_tier.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/error.h"

namespace shardplan {
namespace {

bool is_aligned(std::uint64_t value) {
  return value % kFileAlignment == 0;
}

bool is_full(int error) {
  return error == ENOSPC || error == EDQUOT || error == EFBIG;
}

Bytes available(int file) {
  struct statvfs status{};
  if (fstatvfs(file, &status) != 0) return Bytes{};
  return Bytes{checked_multiply(status.f_bavail, status.f_frsize)};
}

OutOfMemory no_room(const std::string& path, Bytes requested, int file) {
  return {fmt::format("file ({})", path), requested, available(file)};
}

// Calls move(descriptor, done, left), which is as pread or pwrite, until all is done. The aligned start goes to `direct`, if
// that is one; a direct transfer that stops off the alignment goes on through the page cache.
template <typename Move>
void transfer(const std::string& path, const char* what, const Descriptor& file, const Descriptor& direct,
              std::uint64_t offset, const std::byte* memory, std::size_t bytes, Move&& move) {
  const bool starts_aligned =
      direct.get() >= 0 && is_aligned(offset) && is_aligned(reinterpret_cast<std::uintptr_t>(memory));
  const std::size_t body = starts_aligned ? bytes / kFileAlignment * kFileAlignment : 0;
  for (std::size_t done = 0; done < bytes;) {
    const bool directly = done < body && is_aligned(done);
    const ssize_t moved = move(directly ? direct.get() : file.get(), done, (directly ? body : bytes) - done);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) throw IoError(path, offset + done, errno, fmt::format("cannot be {}", what));
    if (moved == 0) throw IoError(path, offset + done, 0, fmt::format("ends {} bytes early", bytes - done));
    done += static_cast<std::size_t>(moved);
  }
}

}  // namespace

FileTier::FileTier(const FileTierOptions& options)
    : path_(options.path),
      bytes_(options.bytes),
      file_(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR)) {
  if (file_.get() < 0) throw IoError(path_, 0, errno, "cannot be made");
  if (flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
    throw IoError(path_, 0, errno, "is in use: expected a folder of this run's own");
  }
  try {
    if (options.io == FileIo::io_uring) rings_ = std::make_unique<IoUrings>(options.callers);
    reserve();
    if (options.direct) open_directly();
  } catch (...) {
    unlink(path_.c_str());
    throw;
  }
}

FileTier::~FileTier() {
  // Only while it is still ours: somebody may have put another file there.
  struct stat ours{};
  struct stat there{};
  const bool same = fstat(file_.get(), &ours) == 0 && stat(path_.c_str(), &there) == 0 && ours.st_ino == there.st_ino &&
                    ours.st_dev == there.st_dev;
  if (same) unlink(path_.c_str());
}

// Blocks of the disk, not only a length: a write into them cannot find the disk full. File systems that cannot reserve
// (EOPNOTSUPP) get zeros written.
void FileTier::reserve() {
  if (ftruncate(file_.get(), 0) != 0) throw IoError(path_, 0, errno, "cannot be emptied");
  if (bytes_ == Bytes{}) return;
  int result = -1;
  do result = fallocate(file_.get(), 0, 0, static_cast<off_t>(bytes_.count()));
  while (result != 0 && errno == EINTR);
  if (result == 0) return;
  if (is_full(errno)) throw no_room(path_, bytes_, file_.get());
  if (errno != EOPNOTSUPP) throw IoError(path_, 0, errno, "its space cannot be reserved");
  static constexpr std::array<std::byte, 1 << 16> kZeros{};
  for (std::uint64_t at = 0; at < bytes_.count(); at += kZeros.size()) {
    try {
      write(at, std::span(kZeros).first(std::min<std::uint64_t>(kZeros.size(), bytes_.count() - at)));
    } catch (const IoError& error) {
      if (is_full(error.error_number())) throw no_room(path_, bytes_, file_.get());
      throw;
    }
  }
}

// Whether it is granted shows in a read: some file systems open with O_DIRECT and refuse the transfer.
void FileTier::open_directly() {
  Descriptor direct(open(path_.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  if (direct.get() < 0) return;
  alignas(kFileAlignment) std::array<std::byte, kFileAlignment> probe{};
  if (bytes_.count() < probe.size() || pread(direct.get(), probe.data(), probe.size(), 0) < 0) return;
  direct_ = std::move(direct);
}

void FileTier::read(std::uint64_t offset, std::span<std::byte> to) {
  check_range(*this, offset, to.size());
  transfer(path_, "read", file_, direct_, offset, to.data(), to.size(),
           [&](int file, std::size_t done, std::size_t left) {
             if (rings_) return rings_->read(file, to.data() + done, left, offset + done);
             return pread(file, to.data() + done, left, static_cast<off_t>(offset + done));
           });
}

void FileTier::write(std::uint64_t offset, std::span<const std::byte> from) {
  check_range(*this, offset, from.size());
  transfer(path_, "written", file_, direct_, offset, from.data(), from.size(),
           [&](int file, std::size_t done, std::size_t left) {
             if (rings_) return rings_->write(file, from.data() + done, left, offset + done);
             return pwrite(file, from.data() + done, left, static_cast<off_t>(offset + done));
           });
}

void FileTier::flush() {
  if (fdatasync(file_.get()) != 0) throw IoError(path_, 0, errno, "cannot be flushed to the disk");
}

void FileTier::check() {
  struct stat status{};
  if (fstat(file_.get(), &status) != 0) throw IoError(path_, 0, errno, "cannot be looked at");
  if (status.st_nlink == 0) throw IoError(path_, 0, ENOENT, "was removed while it was in use");
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size < bytes_.count()) {
    throw IoError(path_, size, 0,
                  fmt::format("was cut short while it was in use: ends before its {} bytes", bytes_.count()));
  }
}

}  // namespace shardplan
