#include "planner/formats/file.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "base/error.h"

namespace shardplan {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kLargestText = std::uint64_t{256} << 20;

}  // namespace

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

bool is_folder(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

std::vector<std::string> paths_ending_in(const std::string& folder, std::string_view ending) {
  std::vector<std::string> paths;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().filename().string().ends_with(ending)) paths.push_back(entry->path().string());
  }
  if (error) throw IoError(folder, 0, error.value(), "cannot be listed");
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::uint64_t file_bytes(const std::string& path) {
  std::error_code error;
  if (is_folder(path)) throw IoError(path, 0, EISDIR, "cannot be read");
  const std::uint64_t bytes = fs::file_size(path, error);
  if (error) throw IoError(path, 0, error.value(), "cannot be read");
  return bytes;
}

std::string read_beginning(const std::string& path, std::uint64_t count) {
  count = std::min(count, file_bytes(path));
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw IoError(path, 0, errno, "cannot be opened");
  std::string bytes(count, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(count));
  if (file.bad() || (file.fail() && !file.eof())) throw IoError(path, 0, errno, "cannot be read");
  bytes.resize(static_cast<std::size_t>(file.gcount()));
  return bytes;
}

std::string read_text(const std::string& path) {
  const std::uint64_t bytes = file_bytes(path);
  if (bytes > kLargestText) throw ConfigError(path, "", "is larger than 256 MiB");
  return read_beginning(path, bytes);
}

std::string last_part(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  const fs::path name = normal.has_filename() ? normal.filename() : normal.parent_path().filename();
  return name.string();
}

}  // namespace shardplan
