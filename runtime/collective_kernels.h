// The inner loops of collectives: one source (collective_kernels.cpp), compiled once for each level of
// processor, the same bits from each. Internal to runtime/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace shardplan {

enum class KernelDType : std::uint8_t { f32, bf16, f16 };

struct ReduceRange {
  KernelDType wire = KernelDType::f32;
  KernelDType output_dtype = KernelDType::f32;
  bool add = false;      // to the output, else store
  bool streams = false;  // stores past the caches, where it does not add; the caller fences (streaming_copy.h)
  std::size_t ranks = 1;
  std::size_t group_size = 1;  // of the reduction tree, >= 1
  float scale = 1.0F;
  const std::byte* const* inputs = nullptr;  // one per rank: its first element of the range
  std::byte* output = nullptr;               // may be one of the inputs, if the element widths are equal
  std::size_t elements = 0;
};

struct CollectiveKernels {
  const char* level;  // "x86-64-v2", ..., "portable"
  void (*reduce)(const ReduceRange& range);
};

// Those that this processor can run, the best one last. Never empty.
std::span<const CollectiveKernels> collective_kernels();

}  // namespace shardplan
