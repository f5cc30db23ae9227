// Buffers: what a state dict holds besides parameters.
#pragma once

#include <string_view>

#include "planner/catalog.h"

namespace shardplan {

// What files hold beside parameters can be told by name alone: rotary frequencies and position numbers, GPT-2's causal
// masks (attn.bias, with the shape [1, 1, positions, positions]), BART's final_logits_bias, the table of sines of SD3's
// patches, Swin's tables of relative positions, running statistics of batch norms.
bool is_saved_buffer(std::string_view name, const Shape& shape);

// Adds the note that says what the catalog's figures leave out, if it has buffers.
void note_buffers(Catalog& catalog);

}  // namespace shardplan
