// T5's encoder, for models that read what it says.
#pragma once

#include <cstdint>
#include <string>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// T5EncoderModel of the modules below `base`: features of `tokens` words, [b, s, h].
Value t5_encoder(ForwardContext& context, const std::string& base, std::uint64_t tokens);

}  // namespace shardplan::autograd
