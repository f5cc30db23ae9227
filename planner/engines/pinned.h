// Pinned host memory as PyTorch hands it out.
#pragma once

#include <bit>

#include "base/bytes.h"

namespace shardplan {

// Tensor.pin_memory() takes a block from torch's caching host allocator, which rounds every size up to a power of two
// (ATen/core/CachingHostAllocator.h, allocate; the default of pinned_max_round_threshold_mb).
constexpr Bytes pinned_block(Bytes bytes) {
  constexpr std::uint64_t kLargest = 1ULL << 63;
  return bytes == Bytes{} || bytes.count() > kLargest ? bytes : Bytes{std::bit_ceil(bytes.count())};
}

}  // namespace shardplan
