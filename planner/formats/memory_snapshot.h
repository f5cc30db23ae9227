// What torch.cuda.memory._dump_snapshot writes: the segments of the caching allocator with their blocks, and, where
// _record_memory_history was on, the allocations and frees that led there.
//
// Sizes are torch's own: a block's `size` is what memory_allocated counts, its `requested_size` what a tensor asked for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace shardplan {

// Whose a block is, by the innermost frame of Python that tells:
//   parameters        torch/nn/modules/module.py moves or makes a module: to, cuda, to_empty, _apply
//   optimizer_states  a file of an optimizer: torch/optim, apex/optimizers, bitsandbytes/optim, deepspeed/ops/adam
//   forward           torch/nn/modules/module.py calls a module: _call_impl
//   backward          torch/autograd/graph.py runs the engine: _engine_run_backward
//   unnamed           none of these. Autograd's own threads have no frames of Python: gradients are mostly here
enum class BlockOrigin : std::uint8_t { parameters, optimizer_states, forward, backward, unnamed };
inline constexpr std::size_t kBlockOrigins = 5;
std::string_view name(BlockOrigin origin);

struct BlocksHeld {
  std::array<Bytes, kBlockOrigins> by_origin{};
  Bytes sum() const;  // what torch.cuda.memory_allocated shows
  bool operator==(const BlocksHeld&) const = default;
};

struct MemorySnapshot {
  BlocksHeld held;  // at the moment of the snapshot
  Bytes requested;  // likewise, what was asked for
  Bytes reserved;   // likewise, all segments
  bool has_trace = false;
  BlocksHeld at_peak;   // at the highest point of the trace; without one, as `held`
  Bytes peak_reserved;  // in the trace
};

// Of the GPU that has most reserved. Throws ConfigError.
MemorySnapshot read_memory_snapshot(std::string_view bytes, std::string source);

}  // namespace shardplan
