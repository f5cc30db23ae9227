// Mixtures of experts as models of transformers compute them: a loop over the experts, each on the tokens that chose it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

struct ExpertNames {
  std::string_view part;  // of the block
  std::string_view gate;
  std::string_view up;
  std::string_view down;
};
inline constexpr ExpertNames kMixtralNames{"block_sparse_moe", "w1", "w3", "w2"};
inline constexpr ExpertNames kQwenNames{"mlp", "gate_proj", "up_proj", "down_proj"};

const Routing& routing_of(const UnitView& block, const ExpertNames& names);

// down(act(gate(x)) * up(x)) of expert `number`.
Value expert(const UnitView& block, std::uint64_t number, const ExpertNames& names, const Value& x);

// How many of all choices fall on expert i is data; here they are shared out as evenly as they can be: of N choices of E
// experts, floor((i + 1) N / E) - floor(i N / E).
std::uint64_t choices_of(std::uint64_t i, const Routing& routing, std::uint64_t tokens);

// Which tokens chose an expert, and as which of their choices: where() of a column of the mask.
Value chosen_by(Tape& tape, std::uint64_t count);

// The blocks of Mixtral and its kin: hidden [b, s, h] to the same. `all_run`: experts that nobody chose run too, on no tokens.
Value mixture(const UnitView& block, const ExpertNames& names, const Value& hidden, bool all_run = false);

}  // namespace shardplan::autograd
