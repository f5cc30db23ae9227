// Any bytes as a memory snapshot of PyTorch's: totals that belong together, or an Error.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "planner/formats/memory_snapshot.h"

namespace shardplan {

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer calls it by this name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const MemorySnapshot snapshot = read_memory_snapshot({reinterpret_cast<const char*>(data), size}, "fuzz");
    SHARDPLAN_CHECK(snapshot.at_peak.sum() >= snapshot.held.sum(), "a peak below the end");
    SHARDPLAN_CHECK(snapshot.peak_reserved >= snapshot.reserved, "a peak below the end");
  } catch (const Error&) {  // the answer to bad input
  }
  return 0;
}

}  // namespace shardplan
