#include "offload/tier.h"

#include <fmt/format.h>

#include "base/error.h"

namespace shardplan {

void check_range(const ByteTier& tier, std::uint64_t offset, std::size_t bytes) {
  const std::uint64_t end = tier.bytes().count();
  SHARDPLAN_CHECK(offset <= end && bytes <= end - offset,
                  fmt::format("{} bytes at {} of {}, which has {}", bytes, offset, tier.name(), end));
}

}  // namespace shardplan
