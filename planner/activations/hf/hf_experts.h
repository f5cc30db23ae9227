// Mixtures of experts as models of transformers compute them: a loop over the experts, each on the tokens that chose it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "planner/activations/hf/hf_layers.h"

namespace shardplan::autograd {

struct ExpertNames {
  std::string_view part;  // of the block
  std::string_view gate;
  std::string_view up;
  std::string_view down;
  std::string_view router = "gate";
};
inline constexpr ExpertNames kMixtralNames{"block_sparse_moe", "w1", "w3", "w2"};
inline constexpr ExpertNames kQwenNames{"mlp", "gate_proj", "up_proj", "down_proj"};

const Routing& routing_of(const UnitView& block, const ExpertNames& names);

// down(act(gate(x)) * up(x)) of expert `number`.
Value expert(const UnitView& block, std::uint64_t number, const ExpertNames& names, const Value& x);

// How many of the tokens choose expert i, which is data: as the client says that they fall (planner/expert_load.h).
std::uint64_t choices_of(const ForwardContext& context, std::uint64_t i, const Routing& routing, std::uint64_t tokens);

// Which tokens chose an expert, and as which of their choices: where() of a column of the mask.
Value chosen_by(Tape& tape, std::uint64_t count);

// A token's experts and their weights, [tokens, chosen].
struct Choice {
  Value weights;
  Value experts;
};
// The most probable ones (softmax in fp32), with weights of this dtype.
Choice most_probable(const Routing& routing, const Value& logits, DType dtype);

struct MixtureOptions {
  Choice (*choose)(const Routing& routing, const Value& logits, DType dtype) = most_probable;
  bool all_run = false;  // experts that nobody chose run too, on no tokens
};

// The blocks of Mixtral and its kin: hidden [b, s, h] to the same.
Value mixture(ForwardContext& context, const UnitView& block, const ExpertNames& names, const Value& hidden,
              const MixtureOptions& options = {});

// x *= noise, where the block has such a module: "input_jitter" below `name`.
Value jittered(const UnitView& block, std::string_view name, const Value& x);

// What a router said is kept for balancing_loss, where the model has that.
void keep_for_balance(ForwardContext& context, const Routing& routing, const Value& said);

// load_balancing_loss_func: how evenly the routers of all layers share tokens out; a scalar.
Value balancing_loss(ForwardContext& context, RouterSays said);

}  // namespace shardplan::autograd
