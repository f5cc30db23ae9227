// Precision policies and optimizers: which dtypes training keeps, and which states an optimizer holds.
//
// Both are tables (policy.cpp) that a person can read; every entry of a policy can be overridden.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/dtype.h"

namespace shardplan {

// The dtypes of one training run. Bytes per parameter of the named policies (parameter + gradient + optimizer states
// with AdamW) stand beside them in policy.cpp.
struct Policy {
  std::string name = "bf16-mixed";
  DType compute = DType::bf16;
  DType parameter = DType::bf16;
  DType gradient = DType::bf16;
  // What micro-batches are summed in, where gradient accumulation is on (A > 1).
  DType gradient_accumulator = DType::f32;
  // The optimizer's own copy of the parameters; none where the parameter itself is updated.
  std::optional<DType> master = DType::f32;
  DType first_moment = DType::f32;
  DType second_moment = DType::f32;
  // What a rank contributes to a reduction in.
  DType wire = DType::bf16;

  bool operator==(const Policy&) const = default;
};

// Throws ConfigError, with the known names, for a name that is none.
Policy policy_named(std::string_view name);
std::span<const Policy> all_policies();

// The policy of a tensor whose dtype the model fixes: the same one where that is its parameter dtype. Else a trainable
// fixed dtype makes its own gradient, travels as itself, and needs no master where it is at least as wide as one. Where moments
// are as narrow as the parameters (torch.optim's zeros_like), those of a tensor in fp32 are fp32. Frozen tensors only use
// `parameter`.
Policy policy_for(const Policy& policy, std::optional<DType> fixed_dtype);

enum class OptimizerKind : std::uint8_t { adamw, adam, sgd, sgd_momentum, lion, adafactor, adam8bit, muon };

struct OptimizerStates {
  OptimizerKind kind;
  std::string_view name;    // as in flags
  bool first_moment;        // a tensor in Policy::first_moment per parameter
  bool second_moment;       // a tensor in Policy::second_moment per parameter
  std::string_view source;  // where the states are defined
  // States follow the shapes of tensors instead (planner/optimizer_states.h): no moment above, and none of our own
  // kernels, whose shards are flat.
  bool by_shape = false;
};

// Throws ConfigError, with the known names, for a name that is none.
const OptimizerStates& optimizer_named(std::string_view name);
const OptimizerStates& states_of(OptimizerKind kind);
std::span<const OptimizerStates> all_optimizers();

}  // namespace shardplan
