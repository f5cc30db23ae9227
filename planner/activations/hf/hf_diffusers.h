// What transformers of diffusers 0.39 share: adaptive norms, the embedding of a noise level, the loss of their trainings.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// Says that x, one of a block's streams, passes those of these modules that it has: norms, scales and gates without tensors
// (UnitView::passes). `stream`: what their names end with.
void stream_passes(const UnitView& block, std::initializer_list<std::string_view> modules, std::string_view stream,
                   const Value& x);

Value normed(const Value& x);  // a LayerNorm without tensors
// x (1 + factor) + summand
Value modulated(const Value& x, const Value& factor, const Value& summand);
// linear_2(silu(linear_1(x))) below `name`.
Value embedder(const UnitView& unit, const std::string& name, const Value& x);

// A linear module on some of the tokens of each sample: rows that do not lie in a row are copied, and a bias is added to the
// product (aten/src/ATen/native/Linear.cpp).
Value linear_of_part(const Value& part, const Parameters& layer);

// mean((prediction - target)^2) in fp32
Value square_loss(ForwardContext& context, const Value& prediction, const Value& target);

}  // namespace shardplan::autograd
