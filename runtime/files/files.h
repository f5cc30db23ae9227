// Files and folders as a checkpoint needs them: what is written, and what is still there after the power was cut.
//
// What an implementation promises, and nothing more:
//   1. What was written to a file survives once sync() has returned. Before, any part of it may, in any order.
//   2. That a file or folder has a name survives once sync_folder() of the folder that holds it has returned.
//   3. rename() is atomic: at every moment, a crash included, the name means the old thing or the new one.
// So whoever publishes something writes it under another name, syncs each file, syncs its folder, renames it, and syncs
// the folder that holds the name.
//
// Errors: IoError with path, offset and errno. Threads: one object of files may be used from any thread; an OutputFile
// belongs to one at a time; InputFile::read may be called from several at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace shardplan {

// Blocks in which direct I/O works: of addresses, offsets and lengths. Disks of today ask for 512 bytes or 4096.
inline constexpr std::size_t kFileAlignment = 4096;

// A file that is being written from its beginning to its end. The destructor closes it; what was not synced may be lost.
class OutputFile {
 public:
  virtual ~OutputFile() = default;
  // Before the first write: how long the file will be. Takes the room for it now, so that a full disk is an IoError (ENOSPC)
  // here and not in the middle; where the file system cannot do that, nothing.
  virtual void reserve(std::uint64_t /*bytes*/) {}
  // Appends. Fast where address and length are multiples of kFileAlignment in every call but the last.
  virtual void write(std::span<const std::byte> bytes) = 0;
  virtual void sync() = 0;
};

class InputFile {
 public:
  virtual ~InputFile() = default;
  virtual std::uint64_t bytes() const = 0;
  // All of `to`, from `offset` on; IoError where the file ends before that.
  virtual void read(std::uint64_t offset, std::span<std::byte> to) const = 0;
};

struct FolderEntry {
  std::string name;
  bool folder = false;
  bool operator==(const FolderEntry&) const = default;
};

class Files {
 public:
  virtual ~Files() = default;
  // A new file; IoError (EEXIST) where the name is taken.
  virtual std::unique_ptr<OutputFile> create(const std::string& path) = 0;
  virtual std::unique_ptr<InputFile> open(const std::string& path) = 0;
  virtual bool exists(const std::string& path) = 0;
  // In a folder that is there; nothing where it is there itself.
  virtual void make_folder(const std::string& path) = 0;
  virtual void sync_folder(const std::string& path) = 0;
  // Replaces a file of that name. Not across file systems.
  virtual void rename(const std::string& from, const std::string& to) = 0;
  virtual void remove_file(const std::string& path) = 0;
  virtual void remove_folder(const std::string& path) = 0;  // empty
  // In order of name.
  virtual std::vector<FolderEntry> list(const std::string& path) = 0;
};

// Memory for direct I/O: aligned to kFileAlignment, its size rounded up to a multiple of it.
class FileBuffer {
 public:
  // Throws OutOfMemory.
  explicit FileBuffer(std::size_t bytes);
  std::span<std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::size_t size_;
  std::unique_ptr<std::byte, Free> data_;
};

// A whole file, of at most `most` bytes (more is an IoError, EFBIG).
std::string read_whole(Files& files, const std::string& path, std::uint64_t most);
// A folder, with its parents; the names of those that were made are safe.
void make_folders(Files& files, const std::string& path);
// create, write and sync. The name is not yet safe: see promise 2.
void write_whole(Files& files, const std::string& path, std::string_view text);
// Where `path` has no parent, ".".
std::string parent_folder(const std::string& path);
std::string join_path(const std::string& folder, std::string_view name);

}  // namespace shardplan
