// Copies whose stores go past the caches. Internal to runtime/.
//
// A store to a line that the cache lacks reads the line first. What is larger than the caches and is not read soon, the output
// of a collective, needs neither the read nor the room: 64 MB between two processes on Zen 3, memcpy 9 GB/s, this 13.
// The platform's file is chosen by the build (SHARDPLAN_STREAMING_COPY); the portable one is memcpy, which sanitizers see.
#pragma once

#include <cstddef>

#include "base/bytes.h"

namespace shardplan {

// From here on: more than a core's own caches hold.
inline constexpr Bytes kStreamedFrom = 4_MiB;

// As memcpy. Others may read it only after the caller's streaming_fence() and whatever it publishes with.
void streaming_copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept;
void streaming_fence() noexcept;

}  // namespace shardplan
