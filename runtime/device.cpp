#include "runtime/device.h"

namespace shardplan {

std::string_view name(MemoryTier tier) {
  switch (tier) {
    case MemoryTier::device:
      return "device";
    case MemoryTier::pinned_host:
      return "pinned host";
    case MemoryTier::host:
      return "host";
  }
  return "unknown";
}

}  // namespace shardplan
