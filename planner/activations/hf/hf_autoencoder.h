// The encoder of latent diffusion's autoencoder, for models that are trained on what it makes of images.
#pragma once

#include <cstdint>
#include <string>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// AutoencoderKL.encode(pixels).latent_dist.sample() of the modules below `base`, [b, channels, h, w].
Value sampled_latents(ForwardContext& context, const std::string& base, std::uint64_t height, std::uint64_t width);

}  // namespace shardplan::autograd
