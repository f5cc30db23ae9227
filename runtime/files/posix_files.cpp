#include "runtime/files/posix_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace fs = std::filesystem;
namespace {

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  int operator*() const { return number_; }

 private:
  int number_;
};

// A call that is made again where a signal interrupted it.
template <typename Call>
auto uninterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

int open_file(const std::string& path, int flags) {
  return uninterrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC, 0666); });
}

void sync_descriptor(int descriptor, const std::string& path) {
  if (uninterrupted([&] { return ::fsync(descriptor); }) != 0) throw IoError(path, 0, errno, "cannot be synced");
}

bool is_aligned(std::uint64_t offset, std::span<const std::byte> bytes) {
  return (offset | bytes.size() | reinterpret_cast<std::uintptr_t>(bytes.data())) % kFileAlignment == 0;
}

class PosixOutput final : public OutputFile {
 public:
  PosixOutput(std::string path, Descriptor file, bool direct)
      : path_(std::move(path)), file_(std::move(file)), direct_(direct) {}

  void reserve(std::uint64_t bytes) override {
    if (bytes == 0) return;
    // EINTR: a file system in memory begins anew then, and may never come to an end.
    const int result = ::fallocate(*file_, 0, 0, static_cast<off_t>(bytes));
    if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
      throw IoError(path_, 0, errno, "cannot get its room");
  }

  void write(std::span<const std::byte> bytes) override {
    if (direct_) {  // but for the last bytes of a file
      const auto whole = bytes.first(bytes.size() / kFileAlignment * kFileAlignment);
      if (aligned(whole)) {
        write_all(whole);
        bytes = bytes.subspan(whole.size());
      }
      if (direct_ && !bytes.empty()) leave_direct();
    }
    write_all(bytes);
  }

  void sync() override { sync_descriptor(*file_, path_); }

 private:
  void write_all(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written =
          uninterrupted([&] { return ::pwrite(*file_, bytes.data(), bytes.size(), static_cast<off_t>(offset_)); });
      if (written <= 0) throw IoError(path_, offset_, written < 0 ? errno : ENOSPC, "cannot be written");
      offset_ += static_cast<std::uint64_t>(written);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
      if (direct_ && !aligned(bytes)) leave_direct();  // a write that was cut short
    }
  }

  bool aligned(std::span<const std::byte> bytes) const { return is_aligned(offset_, bytes); }
  void leave_direct() {
    const int flags = ::fcntl(*file_, F_GETFL);
    if (flags < 0 || ::fcntl(*file_, F_SETFL, flags & ~O_DIRECT) != 0) {
      throw IoError(path_, offset_, errno, "cannot leave direct I/O");
    }
    direct_ = false;
  }

  std::string path_;
  Descriptor file_;
  bool direct_;
  std::uint64_t offset_ = 0;
};

class PosixInput final : public InputFile {
 public:
  PosixInput(std::string path, Descriptor file) : path_(std::move(path)), file_(std::move(file)) {
    struct stat status{};
    if (::fstat(*file_, &status) != 0) throw IoError(path_, 0, errno, "cannot be read");
    if (!S_ISREG(status.st_mode)) throw IoError(path_, 0, S_ISDIR(status.st_mode) ? EISDIR : EINVAL, "is no file");
    bytes_ = static_cast<std::uint64_t>(status.st_size);
  }

  std::uint64_t bytes() const override { return bytes_; }

  void read(std::uint64_t offset, std::span<std::byte> to) const override {
    // All of it at once: a page cache that is not told so asks its disk for little at a time.
    if (to.size() >= kLong) {
      ::posix_fadvise(*file_, static_cast<off_t>(offset), static_cast<off_t>(to.size()), POSIX_FADV_WILLNEED);
    }
    while (!to.empty()) {
      const ssize_t count =
          uninterrupted([&] { return ::pread(*file_, to.data(), to.size(), static_cast<off_t>(offset)); });
      if (count < 0) throw IoError(path_, offset, errno, "cannot be read");
      if (count == 0) throw IoError(path_, offset, 0, "ends here");
      offset += static_cast<std::uint64_t>(count);
      to = to.subspan(static_cast<std::size_t>(count));
    }
  }

 private:
  static constexpr std::size_t kLong = std::size_t{1} << 20;

  std::string path_;
  Descriptor file_;
  std::uint64_t bytes_ = 0;
};

void check(const std::string& path, const std::error_code& error, const char* problem) {
  if (error) throw IoError(path, 0, error.value(), problem);
}

}  // namespace

std::unique_ptr<OutputFile> PosixFiles::create(const std::string& path) {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL;
  if (writes_ == FileWrites::direct) {
    Descriptor file(open_file(path, kFlags | O_DIRECT));
    if (*file >= 0) return std::make_unique<PosixOutput>(path, std::move(file), true);
    if (errno != EINVAL) throw IoError(path, 0, errno, "cannot be created");
    ::unlink(path.c_str());  // a file system without direct I/O says so after it has made the file
  }
  Descriptor file(open_file(path, kFlags));
  if (*file < 0) throw IoError(path, 0, errno, "cannot be created");
  return std::make_unique<PosixOutput>(path, std::move(file), false);
}

std::unique_ptr<InputFile> PosixFiles::open(const std::string& path) {
  Descriptor file(open_file(path, O_RDONLY | O_NONBLOCK));  // a pipe of this name must not block
  if (*file < 0) throw IoError(path, 0, errno, "cannot be opened");
  return std::make_unique<PosixInput>(path, std::move(file));
}

bool PosixFiles::exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

void PosixFiles::make_folder(const std::string& path) {
  std::error_code error;
  fs::create_directory(path, error);
  check(path, error, "cannot be made");
}

void PosixFiles::sync_folder(const std::string& path) {
  const Descriptor folder(open_file(path, O_RDONLY | O_DIRECTORY));
  if (*folder < 0) throw IoError(path, 0, errno, "cannot be opened");
  sync_descriptor(*folder, path);
}

void PosixFiles::rename(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) throw IoError(to, 0, errno, "cannot be named so");
}

void PosixFiles::remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0) throw IoError(path, 0, errno, "cannot be removed");
}

void PosixFiles::remove_folder(const std::string& path) {
  if (::rmdir(path.c_str()) != 0) throw IoError(path, 0, errno, "cannot be removed");
}

std::vector<FolderEntry> PosixFiles::list(const std::string& path) {
  std::vector<FolderEntry> entries;
  std::error_code error;
  for (fs::directory_iterator entry(path, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code unknown;
    entries.push_back({entry->path().filename().string(), entry->is_directory(unknown)});
  }
  check(path, error, "cannot be listed");
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return entries;
}

}  // namespace shardplan
