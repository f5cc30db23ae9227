// A disk in memory that can lose its power.
//
// It keeps what Files promises (runtime/files/files.h) and nothing more: what was not synced when the power went may be
// there, in part, in any order, or not at all. Operations are counted; the power can be cut after any of them, and
// after_power_cut() then makes one of the disks that may be found.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/files/files.h"

namespace shardplan::test {

class PowerCut : public std::runtime_error {
 public:
  PowerCut() : std::runtime_error("the power is cut") {}
};

class CrashingFiles final : public Files {
 public:
  // What is found of the operations that were not synced.
  enum class Found : std::uint8_t { all, none, some };

  CrashingFiles();
  ~CrashingFiles() override;

  // How many operations that change something there were: create, write, sync, make_folder, sync_folder, rename, remove.
  std::uint64_t operations() const;
  // The power goes after this many operations: the next one, and every later one, throws PowerCut.
  void cut_after(std::uint64_t operations);
  // Every later operation that changes something, and that matches, throws IoError instead.
  void fail_when(std::function<bool(const std::string& operation, const std::string& path)> match);
  // A disk that lies: syncs do nothing. Whoever tests with such a disk must see the harm.
  void ignore_syncs() { ignore_syncs_ = true; }
  std::unique_ptr<CrashingFiles> after_power_cut(Found found, std::uint64_t seed) const;

  // For damage: the bytes of a file as they are.
  std::string& content(const std::string& path);
  // Every file's path.
  std::vector<std::string> paths() const;

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
  struct Node;
  using NodePtr = std::shared_ptr<Node>;
  class Output;
  class Input;

  void change(const std::string& operation, const std::string& path);
  NodePtr find(const std::string& path) const;
  NodePtr existing(const std::string& path) const;
  Node& folder_of(const std::string& path) const;

  mutable std::mutex mutex_;
  NodePtr root_;
  std::uint64_t operations_ = 0;
  std::optional<std::uint64_t> cut_after_;
  bool ignore_syncs_ = false;
  std::function<bool(const std::string&, const std::string&)> fail_when_;
};

}  // namespace shardplan::test
