#include "runtime/shared/process_neighbours.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

std::shared_ptr<HostMapping> map(int world_rank, const SharedHandle& handle) {
  const std::string path = fmt::format("/proc/{}/fd/{}", handle.process, handle.descriptor);
  const Descriptor file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (file.get() < 0) {
    throw IoError(
        path, 0, errno,
        fmt::format("the memory of rank {} cannot be opened; ranks that share memory are processes of one user in "
                    "one pid namespace, with /proc mounted",
                    world_rank));
  }
  return std::make_shared<HostMapping>(HostMapping::of_file(file, Bytes{handle.bytes}, path));
}

}  // namespace

ProcessNeighbours::ProcessNeighbours(const std::vector<pid_t>& processes) {
  for (std::size_t rank = 0; rank < processes.size(); ++rank) {
    lives_.emplace_back(static_cast<int>(syscall(SYS_pidfd_open, processes[rank], 0)));
    if (lives_.back().get() < 0) {
      throw IoError(fmt::format("/proc/{}", processes[rank]), 0, errno,
                    fmt::format("the process of rank {} cannot be watched (pidfd_open)", rank));
    }
  }
}

CommonMemory ProcessNeighbours::make_common_memory(Bytes bytes) {
  auto mapping = std::make_shared<HostMapping>(bytes, "shared", HostPages::shareable);
  const Offer offer{.handle = {.process = getpid(), .descriptor = mapping->descriptor(), .bytes = bytes.count()}};
  std::shared_ptr<const void> keeper(mapping.get(), [mapping](const void*) { mapping->close_file(); });
  return {.bytes = {mapping, mapping->data()}, .offer = offer, .keeper = std::move(keeper)};
}

std::shared_ptr<std::byte> ProcessNeighbours::open_common(int world_rank, const Offer& offer) {
  const std::shared_ptr<HostMapping> mapping = map(world_rank, offer.handle);
  return {mapping, mapping->data()};
}

Offer ProcessNeighbours::offer_arena(const std::shared_ptr<Arena>& arena, const Device& device) {
  const std::optional<SharedHandle> handle = arena->shared_handle();
  if (!handle) {
    throw ConfigError("make_arena", device.name(),
                      "other processes cannot map this device's memory: expected CpuDevice(HostPages::shareable)");
  }
  return {.handle = *handle};
}

void ProcessNeighbours::open_arena(int world_rank, const Offer& offer, ArenaGroup& group) {
  const std::shared_ptr<HostMapping> mapping = map(world_rank, offer.handle);
  group.join(world_rank, mapping->data() + offer.handle.offset, mapping);
}

}  // namespace shardplan
