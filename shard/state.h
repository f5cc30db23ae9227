// An optimizer's state as named values: what has to be kept so that training goes on with the same bits.
//
// Values are addressed by tensor, kind and element, and do not depend on the world, the stage or the layout: what N
// ranks have visited, M ranks at another stage can load. Padding and tied tensors are left out; so are options,
// learning rates among them, and gradients, which the next step makes anew.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "shard/kernels/arrays.h"

namespace shardplan {

enum class StateKind : std::uint8_t {
  parameter,  // in full precision: the master where the policy has one, from which the parameter is rounded
  first_moment,
  second_moment,
  ema,
};
inline constexpr std::uint64_t kStateKinds = 4;
std::string_view name(StateKind kind);

// Where values are from or for: some elements of a tensor. Their number and dtype come with the values.
struct StateRange {
  std::string_view name;     // the tensor's whole name
  std::uint64_t tensor = 0;  // its place in the catalog's order, tied ones counted
  StateKind kind = StateKind::parameter;
  std::uint64_t first = 0;  // element
};

// The part that is the same on every rank.
struct StepState {
  std::uint64_t steps_applied = 0;
  double loss_scale = 1;
  std::uint64_t clean_steps = 0;      // since the loss scale changed
  std::uint64_t hysteresis_left = 1;  // skipped steps until it shrinks
  bool operator==(const StepState&) const = default;
};

// Values are in host memory, in the plan's own dtype of that state, at most kStateChunk elements at a time, and valid
// until the call returns.
inline constexpr std::uint64_t kStateChunk = 1 << 16;
using StateVisitor = std::function<void(const StateRange&, const ConstElements&)>;
using StateLister = std::function<void(const StateRange&, DType dtype, std::uint64_t elements)>;
// Writes every element.
using StateLoader = std::function<void(const StateRange&, const Elements&)>;

}  // namespace shardplan
