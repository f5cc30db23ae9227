// The files of this machine.
#pragma once

#include "runtime/files/files.h"

namespace shardplan {

// How files are written. Reading goes through the page cache.
enum class FileWrites : std::uint8_t {
  direct,    // past the page cache (O_DIRECT), where the file system can and as long as writes are aligned
  buffered,  // through it
};

class PosixFiles final : public Files {
 public:
  explicit PosixFiles(FileWrites writes = FileWrites::direct) : writes_(writes) {}

  std::unique_ptr<OutputFile> create(const std::string& path) override;
  std::unique_ptr<InputFile> open(const std::string& path) override;
  bool exists(const std::string& path) override;
  void make_folder(const std::string& path) override;
  void sync_folder(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove_file(const std::string& path) override;
  void remove_folder(const std::string& path) override;
  std::vector<FolderEntry> list(const std::string& path) override;

 private:
  FileWrites writes_;
};

}  // namespace shardplan
