// The tiers on which bytes live.
#pragma once

#include <cstdint>
#include <string_view>

namespace shardplan {

// pinned: host memory that the device's kernels reach, page-locked. pageable: other host memory.
enum class Tier : std::uint8_t { device, pinned, pageable, file };
std::string_view name(Tier tier);

}  // namespace shardplan
