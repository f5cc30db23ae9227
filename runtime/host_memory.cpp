#include "runtime/host_memory.h"

#include <sys/mman.h>
#include <sys/resource.h>
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

// Makes every page present. False: the system could not.
bool populate(std::byte* data, std::uint64_t bytes, std::uint64_t page) {
  if (madvise(data, bytes, MADV_POPULATE_WRITE) == 0) return true;
  if (errno != EINVAL) return false;  // EINVAL: a kernel before 5.14
  for (std::uint64_t at = 0; at < bytes; at += page) *reinterpret_cast<volatile std::byte*>(data + at) = std::byte{0};
  return true;
}

}  // namespace

Bytes available_host_memory() {
  const std::uint64_t system = read_entry("/proc/meminfo", "MemAvailable:");
  const std::uint64_t least = std::min(control_group_headroom(), address_space_headroom());
  return Bytes{system == 0 ? least : std::min(least, checked_multiply(system, 1024))};
}

HostMapping::HostMapping(Bytes bytes, std::string_view tier) {
  const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const auto out_of_memory = [&] { return OutOfMemory(std::string(tier), bytes, available_host_memory()); };
  if (bytes > available_host_memory()) throw out_of_memory();
  bytes_ = round_up(std::max(bytes, 1_B), Bytes{page});

  // A huge page more than needed, so that a boundary can be chosen; what lies around it goes back at once.
  const std::uint64_t whole = (bytes_ + kHugePage).count();
  void* mapped = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw out_of_memory();
  const auto start = reinterpret_cast<std::uintptr_t>(mapped);
  const std::uint64_t before = round_up(start, kHugePage.count()) - start;
  data_ = static_cast<std::byte*>(mapped) + before;
  if (before != 0) munmap(mapped, before);
  munmap(data_ + bytes_.count(), whole - before - bytes_.count());

  madvise(data_, bytes_.count(), MADV_HUGEPAGE);  // a wish: systems without huge pages refuse it
  if (!populate(data_, bytes_.count(), page)) {
    munmap(data_, bytes_.count());
    throw out_of_memory();
  }
}

HostMapping::~HostMapping() {
  if (data_ != nullptr) munmap(data_, bytes_.count());
}

HostMapping::HostMapping(HostMapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}

}  // namespace shardplan
