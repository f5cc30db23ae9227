// What torchtune's and torchtitan's Llama have in common: the modules of family llama or mistral, positions in pairs of
// neighbours, computed in fp32.
#pragma once

#include <string>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// x.float() * rsqrt(mean(x.float()^2) + eps), back in x's dtype, times the weight. With more than one rank x becomes a DTensor.
Value fp32_rms_norm(const Parameters& layer, const Value& x, std::uint64_t ranks = 1);

// nn.Linear or, with an adapter, LoRALinear of torchtune.
Value adapted_linear(const UnitView& unit, std::string_view name, const Value& x);

// down(silu(gate(x)) * up(x))
Value gated_feed_forward(const UnitView& block, const Value& x);

// Embedding, blocks, last norm; of a stage of a pipeline those that it has. A text's part on this rank, where context and tensor
// parallelism cut it.
Value decoder_features(ForwardContext& context, BlockForward block);

const AttentionSizes& attention_sizes_of(const UnitView& block);

}  // namespace shardplan::autograd

namespace shardplan {

// What both refuse, of the profile with this name; empty where it can be computed.
std::string torch_decoder_refuses(const Model& model, const Setup& setup, std::string_view profile);

}  // namespace shardplan
