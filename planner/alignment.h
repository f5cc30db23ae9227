// How buffers are aligned in an arena: large ones to 4 KiB, which direct I/O needs, small ones to a cache line.
#pragma once

#include "base/bytes.h"

namespace shardplan {

constexpr Bytes alignment_of(Bytes bytes) {
  return bytes >= 1_MiB ? 4_KiB : 64_B;
}
constexpr Bytes aligned(Bytes bytes) {
  return round_up(bytes, alignment_of(bytes));
}

}  // namespace shardplan
