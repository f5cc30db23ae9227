#include "tests/support/crashing_files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <random>
#include <utility>

#include "base/error.h"

namespace shardplan::test {

struct CrashingFiles::Node {
  bool folder = false;
  // A file: as it is, as it is on the medium, and the writes that may be.
  std::string content;
  std::string on_medium;
  std::vector<std::pair<std::size_t, std::string>> unsynced_writes;
  // A folder: names that are set or (null) taken away, all of one change or none.
  using Names = std::map<std::string, NodePtr>;
  Names names;
  Names names_on_medium;
  std::vector<std::vector<std::pair<std::string, NodePtr>>> unsynced_names;

  static void apply(Names& names, const std::vector<std::pair<std::string, NodePtr>>& change) {
    for (const auto& [name, node] : change) {
      if (node) {
        names[name] = node;
      } else {
        names.erase(name);
      }
    }
  }
  void set(std::vector<std::pair<std::string, NodePtr>> change) {
    apply(names, change);
    unsynced_names.push_back(std::move(change));
  }
  void sync() {
    on_medium = content;
    unsynced_writes.clear();
    names_on_medium = names;
    unsynced_names.clear();
  }

  NodePtr found_after(Found found, std::mt19937_64& random) const {
    const auto there = [&] { return found == Found::all || (found == Found::some && random() % 2 == 0); };
    auto node = std::make_shared<Node>();
    node->folder = folder;
    if (folder) {
      Names names_found = names_on_medium;
      for (const auto& change : unsynced_names) {
        if (there()) apply(names_found, change);
      }
      for (const auto& [name, child] : names_found) node->names[name] = child->found_after(found, random);
    } else {
      node->content = on_medium;
      for (const auto& [offset, bytes] : unsynced_writes) {
        if (!there()) continue;
        const bool torn = found == Found::some && random() % 2 == 0;
        const std::size_t count = torn ? random() % (bytes.size() + 1) : bytes.size();
        node->content.resize(std::max(node->content.size(), offset + count));
        node->content.replace(offset, count, bytes, 0, count);
      }
    }
    node->sync();
    return node;
  }
};

namespace {

std::string last_part(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

}  // namespace

class CrashingFiles::Output final : public OutputFile {
 public:
  Output(CrashingFiles& files, std::string path, NodePtr node)
      : files_(files), path_(std::move(path)), node_(std::move(node)) {}
  void reserve(std::uint64_t bytes) override {
    const std::lock_guard lock(files_.mutex_);
    files_.change("reserve", path_);
    reserved_ = bytes;
  }
  void write(std::span<const std::byte> bytes) override {
    const std::lock_guard lock(files_.mutex_);
    files_.change("write", path_);
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    node_->unsynced_writes.emplace_back(node_->content.size(), text);
    node_->content += text;
  }
  void sync() override {
    const std::lock_guard lock(files_.mutex_);
    files_.change("sync", path_);
    SHARDPLAN_CHECK(!reserved_ || *reserved_ == node_->content.size(), "room for another length was reserved");
    if (!files_.ignore_syncs_) node_->sync();
  }

 private:
  CrashingFiles& files_;
  std::string path_;
  NodePtr node_;
  std::optional<std::uint64_t> reserved_;
};

class CrashingFiles::Input final : public InputFile {
 public:
  Input(std::string path, NodePtr node) : path_(std::move(path)), node_(std::move(node)) {}
  std::uint64_t bytes() const override { return node_->content.size(); }
  void read(std::uint64_t offset, std::span<std::byte> to) const override {
    if (offset + to.size() > node_->content.size()) throw IoError(path_, offset, 0, "ends here");
    std::memcpy(to.data(), node_->content.data() + offset, to.size());
  }

 private:
  std::string path_;
  NodePtr node_;
};

CrashingFiles::CrashingFiles() : root_(std::make_shared<Node>()) {
  root_->folder = true;
}
CrashingFiles::~CrashingFiles() = default;

std::uint64_t CrashingFiles::operations() const {
  const std::lock_guard lock(mutex_);
  return operations_;
}

void CrashingFiles::cut_after(std::uint64_t operations) {
  const std::lock_guard lock(mutex_);
  cut_after_ = operations;
}

void CrashingFiles::fail_when(std::function<bool(const std::string&, const std::string&)> match) {
  const std::lock_guard lock(mutex_);
  fail_when_ = std::move(match);
}

std::unique_ptr<CrashingFiles> CrashingFiles::after_power_cut(Found found, std::uint64_t seed) const {
  const std::lock_guard lock(mutex_);
  std::mt19937_64 random(seed);
  auto files = std::make_unique<CrashingFiles>();
  files->root_ = root_->found_after(found, random);
  return files;
}

void CrashingFiles::change(const std::string& operation, const std::string& path) {
  if (cut_after_ && operations_ >= *cut_after_) throw PowerCut();
  ++operations_;
  if (fail_when_ && fail_when_(operation, path)) throw IoError(path, 0, ENOSPC, "cannot " + operation);
}

CrashingFiles::NodePtr CrashingFiles::find(const std::string& path) const {
  NodePtr node = root_;
  for (std::size_t begin = 0; node && begin < path.size();) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    begin = end + 1;
    if (part.empty() || part == ".") continue;
    const auto child = node->names.find(part);
    node = child == node->names.end() ? nullptr : child->second;
  }
  return node;
}

CrashingFiles::NodePtr CrashingFiles::existing(const std::string& path) const {
  NodePtr node = find(path);
  if (!node) throw IoError(path, 0, ENOENT, "is not there");
  return node;
}

CrashingFiles::Node& CrashingFiles::folder_of(const std::string& path) const {
  const NodePtr node = existing(parent_folder(path));
  if (!node->folder) throw IoError(path, 0, ENOTDIR, "is in no folder");
  return *node;
}

std::string& CrashingFiles::content(const std::string& path) {
  return existing(path)->content;
}

std::vector<std::string> CrashingFiles::paths() const {
  std::vector<std::string> all;
  const std::function<void(const Node&, const std::string&)> walk = [&](const Node& node, const std::string& path) {
    if (!node.folder) all.push_back(path);
    for (const auto& [name, child] : node.names) walk(*child, path.empty() ? name : path + "/" + name);
  };
  walk(*root_, "");
  return all;
}

std::unique_ptr<OutputFile> CrashingFiles::create(const std::string& path) {
  const std::lock_guard lock(mutex_);
  if (find(path)) throw IoError(path, 0, EEXIST, "cannot be created");
  change("create", path);
  auto node = std::make_shared<Node>();
  folder_of(path).set({{last_part(path), node}});
  return std::make_unique<Output>(*this, path, node);
}

std::unique_ptr<InputFile> CrashingFiles::open(const std::string& path) {
  const std::lock_guard lock(mutex_);
  NodePtr node = existing(path);
  if (node->folder) throw IoError(path, 0, EISDIR, "is no file");
  return std::make_unique<Input>(path, std::move(node));
}

bool CrashingFiles::exists(const std::string& path) {
  const std::lock_guard lock(mutex_);
  return find(path) != nullptr;
}

void CrashingFiles::make_folder(const std::string& path) {
  const std::lock_guard lock(mutex_);
  if (find(path)) return;
  change("make", path);
  auto node = std::make_shared<Node>();
  node->folder = true;
  folder_of(path).set({{last_part(path), node}});
}

void CrashingFiles::sync_folder(const std::string& path) {
  const std::lock_guard lock(mutex_);
  change("sync", path);
  if (!ignore_syncs_) existing(path)->sync();
}

void CrashingFiles::rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(mutex_);
  if (parent_folder(from) != parent_folder(to)) throw IoError(to, 0, EXDEV, "is in another folder");
  NodePtr node = existing(from);
  const NodePtr there = find(to);
  if (there && (there->folder || node->folder)) throw IoError(to, 0, EEXIST, "cannot be named so");
  change("rename", to);
  folder_of(to).set({{last_part(from), nullptr}, {last_part(to), node}});
}

void CrashingFiles::remove_file(const std::string& path) {
  const std::lock_guard lock(mutex_);
  if (existing(path)->folder) throw IoError(path, 0, EISDIR, "cannot be removed");
  change("remove", path);
  folder_of(path).set({{last_part(path), nullptr}});
}

void CrashingFiles::remove_folder(const std::string& path) {
  const std::lock_guard lock(mutex_);
  if (!existing(path)->names.empty()) throw IoError(path, 0, ENOTEMPTY, "cannot be removed");
  change("remove", path);
  folder_of(path).set({{last_part(path), nullptr}});
}

std::vector<FolderEntry> CrashingFiles::list(const std::string& path) {
  const std::lock_guard lock(mutex_);
  std::vector<FolderEntry> entries;
  for (const auto& [name, node] : existing(path)->names) entries.push_back({name, node->folder});
  return entries;
}

}  // namespace shardplan::test
