#include "runtime/host_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();
constexpr Bytes kHugePage = 2_MiB;

// "max" and a missing file are no number.
std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

// The value after `key` in a file of "key value" lines; 0 if it is not there.
std::uint64_t read_entry(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    std::uint64_t value = 0;
    if (word == key && file >> value) return value;
  }
  return 0;
}

// What one control group leaves. Page cache that nobody has used lately is given up before anyone is refused.
std::uint64_t headroom(const std::string& folder, const std::string& limit_file, const std::string& usage_file,
                       const std::string& cache_key) {
  const auto limit = read_number(folder + limit_file);
  const auto usage = read_number(folder + usage_file);
  if (!limit || !usage) return kUnlimited;
  const std::uint64_t cache = read_entry(folder + "memory.stat", cache_key);
  const std::uint64_t used = *usage > cache ? *usage - cache : 0;
  return *limit > used ? *limit - used : 0;
}

// A group's limits hold for the groups below it, so the whole path counts.
std::uint64_t control_group_headroom() {
  std::uint64_t least = kUnlimited;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && controllers != "memory") continue;
    for (std::string path = line.substr(second + 1);; path.erase(path.rfind('/'))) {
      if (path == "/") path.clear();
      least = std::min(
          least, unified ? headroom("/sys/fs/cgroup" + path + "/", "memory.max", "memory.current", "inactive_file")
                         : headroom("/sys/fs/cgroup/memory" + path + "/", "memory.limit_in_bytes",
                                    "memory.usage_in_bytes", "total_inactive_file"));
      if (path.empty() || path.find('/') == std::string::npos) break;
    }
  }
  return least;
}

std::uint64_t address_space_headroom() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnlimited;
  const std::uint64_t used = read_entry("/proc/self/status", "VmSize:") * 1024;
  return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

// Makes every page present. False: the system could not. Kernels before 5.14 answer EINVAL; there a page that a file lacks
// would be a signal when it is touched, so the file gets its pages first.
bool populate(std::byte* data, std::uint64_t bytes, std::uint64_t page, const Descriptor& file) {
  if (madvise(data, bytes, MADV_POPULATE_WRITE) == 0) return true;
  if (errno != EINVAL) return false;
  if (file.get() >= 0 && fallocate(file.get(), 0, 0, static_cast<off_t>(bytes)) != 0) return false;
  for (std::uint64_t at = 0; at < bytes; at += page) *reinterpret_cast<volatile std::byte*>(data + at) = std::byte{0};
  return true;
}

Bytes page_size() {
  return Bytes{static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))};
}

Descriptor file_without_name(Bytes bytes) {
  Descriptor file(memfd_create("shardplan", MFD_CLOEXEC));
  if (file.get() < 0) throw IoError("memfd", 0, errno, "no file for shareable memory");
  if (ftruncate(file.get(), static_cast<off_t>(bytes.count())) != 0) {
    throw IoError("memfd", bytes.count(), errno, "no room for shareable memory");
  }
  return file;
}

}  // namespace

Bytes available_host_memory() {
  const std::uint64_t system = read_entry("/proc/meminfo", "MemAvailable:");
  const std::uint64_t least = std::min(control_group_headroom(), address_space_headroom());
  return Bytes{system == 0 ? least : std::min(least, checked_multiply(system, 1024))};
}

Descriptor::~Descriptor() {
  if (number_ >= 0) close(number_);
}

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

// A huge page more than needed, so that a boundary can be chosen; what lies around it goes back at once. Leaves data_ null
// where there are not so many addresses.
void HostMapping::map(const Descriptor& file) {
  const std::uint64_t whole = (bytes_ + kHugePage).count();
  void* reserved = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return;
  const auto start = reinterpret_cast<std::uintptr_t>(reserved);
  const std::uint64_t before = round_up(start, kHugePage.count()) - start;
  std::byte* const data = static_cast<std::byte*>(reserved) + before;
  if (before != 0) munmap(reserved, before);
  munmap(data + bytes_.count(), whole - before - bytes_.count());
  const int kind = file.get() < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  if (mmap(data, bytes_.count(), PROT_READ | PROT_WRITE, kind | MAP_FIXED, file.get(), 0) == MAP_FAILED) {
    munmap(data, bytes_.count());
    return;
  }
  data_ = data;
  madvise(data_, bytes_.count(), MADV_HUGEPAGE);  // a wish: systems without huge pages refuse it
}

HostMapping::HostMapping(Bytes bytes, std::string_view tier, HostPages pages) {
  const auto out_of_memory = [&] { return OutOfMemory(std::string(tier), bytes, available_host_memory()); };
  if (bytes > available_host_memory()) throw out_of_memory();
  bytes_ = round_up(std::max(bytes, 1_B), page_size());
  if (pages == HostPages::shareable) file_ = file_without_name(bytes_);
  map(file_);
  if (data_ == nullptr) throw out_of_memory();
  if (!populate(data_, bytes_.count(), page_size().count(), file_)) {
    munmap(data_, bytes_.count());
    throw out_of_memory();
  }
}

HostMapping HostMapping::of_file(const Descriptor& file, Bytes bytes, std::string_view name) {
  struct stat status{};
  if (fstat(file.get(), &status) != 0) throw IoError(std::string(name), 0, errno, "cannot be mapped");
  if (static_cast<std::uint64_t>(status.st_size) < bytes.count()) {
    throw IoError(std::string(name), static_cast<std::uint64_t>(status.st_size), 0,
                  fmt::format("ends before the {} bytes to map", bytes.count()));
  }
  HostMapping mapping;
  mapping.bytes_ = round_up(bytes, page_size());
  mapping.map(file);
  if (mapping.data_ == nullptr) throw IoError(std::string(name), 0, errno, "cannot be mapped");
  madvise(mapping.data_, mapping.bytes_.count(), MADV_POPULATE_READ);  // what it leaves undone is done when touched
  return mapping;
}

HostMapping::~HostMapping() {
  if (data_ != nullptr) munmap(data_, bytes_.count());
}

HostMapping::HostMapping(HostMapping&& other) noexcept
    : file_(std::move(other.file_)), data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

}  // namespace shardplan
