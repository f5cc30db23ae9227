// The transformer of Stable Diffusion 3 as its trainings call it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

struct Sd3Batch {
  Value noisy;   // latents, [b, channels, h, w]
  Value text;    // [b, s, joint_attention_dim]
  Value pooled;  // [b, pooled_projection_dim]
  std::function<Value()>
      target;  // what the transformer should say, of the latents' shape; asked for when it has spoken
};

struct Sd3Latents {
  std::uint64_t height = 0;
  std::uint64_t width = 0;
};
// Of the client's images, or of those that the model was made for.
Sd3Latents sd3_latents(const ForwardContext& context);

constexpr std::uint64_t kSd3PixelsOfLatent = 8;  // of a side, as the autoencoder makes them
constexpr std::uint64_t kSd3ClipTokens = 77;
constexpr std::uint64_t kSd3T5Tokens = 256;  // pipeline_stable_diffusion_3.py, max_sequence_length

// The loss of the transformer below `base`: the mean square of what is left, in fp32.
Value sd3_loss(ForwardContext& context, const std::string& base, const Sd3Batch& batch);

}  // namespace shardplan::autograd
