// The encoder of latent diffusion's autoencoder, for models that are trained on what it makes of images; and layers that it shares
// with other encoders of its kind.
#pragma once

#include <cstdint>
#include <string>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

// By a convolution that leaves the resolution as it is. x [b, channels, h, w].
Value convolved(const Value& x, const Parameters& layer);
// A row and a column of zeros, then every second pixel.
Value halved(const Value& x, const Parameters& layer);
// nn.GroupNorm. Without parameters: of one that is not trained and passed over by rows of modules.
Value group_norm(const Value& x, std::uint64_t groups, const Parameters& layer = {});

// AutoencoderKL.encode(pixels).latent_dist.sample() of the modules below `base`, [b, channels, h, w].
Value sampled_latents(ForwardContext& context, const std::string& base, std::uint64_t height, std::uint64_t width);

}  // namespace shardplan::autograd
