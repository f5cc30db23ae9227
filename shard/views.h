// What a client sees of a unit between enter and leave: its tensors, in catalog order, where they lie in the arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"

namespace shardplan {

// A tensor's elements, row-major and contiguous. No copy: `data` points into an arena (or into the tied owner's view).
struct TensorView {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  std::uint64_t elements = 0;
};

// Parameters are read-only by contract. Gradients are the unit's contribution in the wire dtype: after
// `enter(unit, backward)` they are zero (or, for a tied tensor, hold what later units have added), and the client adds
// to them. A frozen tensor's gradient view is empty. A tied tensor's views are its owner's.
struct UnitViews {
  std::span<const TensorView> parameters;
  std::span<const TensorView> gradients;
};

}  // namespace shardplan
