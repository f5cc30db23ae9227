// The loss of a diffusion model that says how much noise there is in an image, as facebookresearch/DiT trains it
// (diffusion/gaussian_diffusion.py, training_losses with ModelMeanType.EPSILON and LossType.MSE).
#pragma once

#include <functional>

#include "planner/activations/tape.h"

namespace shardplan::autograd {

// What the model says of noisy images [b, c, h, w] at their times [b]: the noise, and where its variance is learned that too,
// [b, 2 c, h, w].
using Denoiser = std::function<Value(const Value& noisy)>;

// The mean over the samples of the square of what is left of the noise and, where variances are learned (LEARNED_RANGE), of the
// variational bound, which does not reach the noise that the model says. `images` are fp32.
Value diffusion_loss(const Denoiser& model, const Value& images, bool learns_variances);

}  // namespace shardplan::autograd
