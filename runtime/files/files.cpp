#include "runtime/files/files.h"

#include <cerrno>
#include <cstdlib>
#include <new>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/error.h"

namespace shardplan {

FileBuffer::FileBuffer(std::size_t bytes)
    : size_(round_up(static_cast<std::uint64_t>(bytes), std::uint64_t{kFileAlignment})),
      data_(static_cast<std::byte*>(std::aligned_alloc(kFileAlignment, size_))) {
  if (!data_ && size_ > 0) throw OutOfMemory("host", Bytes{size_}, Bytes{0});
}

void FileBuffer::Free::operator()(std::byte* data) const {
  std::free(data);  // NOLINT(cppcoreguidelines-no-malloc): from aligned_alloc
}

std::string read_whole(Files& files, const std::string& path, std::uint64_t most) {
  const std::unique_ptr<InputFile> file = files.open(path);
  if (file->bytes() > most) throw IoError(path, 0, EFBIG, "cannot be read whole");
  std::string text(file->bytes(), '\0');
  file->read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void make_folders(Files& files, const std::string& path) {
  if (files.exists(path)) return;
  const std::string parent = parent_folder(path);
  make_folders(files, parent);
  files.make_folder(path);
  files.sync_folder(parent);
}

void write_whole(Files& files, const std::string& path, std::string_view text) {
  const std::unique_ptr<OutputFile> file = files.create(path);
  file->write(std::as_bytes(std::span(text)));
  file->sync();
}

std::string parent_folder(const std::string& path) {
  const std::size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  const std::size_t slash = path.find_last_of('/', end);
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string join_path(const std::string& folder, std::string_view name) {
  std::string path = folder;
  if (!path.empty() && path.back() != '/') path += '/';
  return path.append(name);
}

}  // namespace shardplan
