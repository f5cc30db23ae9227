#include "planner/activations/hf/hf_gaussian_diffusion.h"

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr std::uint64_t kSteps = 1000;  // create_diffusion

// _extract_into_tensor: a number of the schedule for each sample, as large as the images.
Value of_schedule(const Value& images) {
  Tape& tape = images.tape();
  const Value numbers = [&] {
    const Value table = tape.allocate("to", {kSteps}, DType::f64);
    const Value chosen = tape.allocate("index", {images.size(0)}, DType::f64);
    return tape.allocate("to", {images.size(0)}, DType::f32);
  }();
  const Value zeros = tape.allocate("zeros", images.shape(), DType::f32);
  return tape.allocate("add", images.shape(), DType::f32);
}

// Two numbers of the schedule times two tensors.
Value scheduled_sum(const Value& a, const Value& b) {
  const Value first = mul(of_schedule(a), a);
  const Value second = mul(of_schedule(b), b);
  return add(first, second);
}

struct Posterior {
  Value mean;
  Value variance;
  Value logarithm;
};

// q_posterior_mean_variance
Posterior posterior(const Value& images, const Value& noisy) {
  Posterior result;
  result.mean = scheduled_sum(images, noisy);
  result.variance = of_schedule(noisy);
  result.logarithm = of_schedule(noisy);
  return result;
}

// Noise and variance that a model says, a half of its channels each.
std::vector<Value> halves(const Value& said, const Value& images) {
  return parts_of(said, std::array{images.shape(), images.shape()});
}

struct Said {
  Value mean;
  Value variance;  // which no loss reads
  Value logarithm;
  Value images;
};

// p_mean_variance
Said said_by(const Value& output, const Value& noisy) {
  const std::vector<Value> parts = halves(output, noisy);
  const Value least = of_schedule(noisy);
  const Value most = of_schedule(noisy);
  const Value part = scale(shift(parts[1]));
  Said said;
  said.logarithm = [&] {
    const Value upper = mul(part, most);
    const Value lower = mul(neg(part), least);
    return add(upper, lower);
  }();
  said.variance = unary_of_output("exp", said.logarithm.detached());
  said.images = [&] {
    const Value whole = mul(of_schedule(noisy), noisy);
    const Value noise = mul(of_schedule(noisy), parts[0]);
    return sub(whole, noise);
  }();
  Posterior behind = posterior(said.images, noisy);
  said.mean = std::move(behind.mean);
  return said;
}

// normal_kl
Value divergence(const Posterior& one, const Said& other) {
  Value sum = sub(shift(other.logarithm), one.logarithm);
  sum = add(sum, unary_of_output("exp", sub(one.logarithm, other.logarithm)));
  const Value squares = pow(sub(one.mean, other.mean));
  const Value weighted = mul(squares, unary_of_output("exp", neg(other.logarithm)));
  sum = add(sum, weighted);
  return scale(sum);
}

// approx_standard_normal_cdf
Value part_below(const Value& x) {
  Value inner = add(x, scale(pow(x)));
  inner = unary_of_output("tanh", scale(inner));
  return scale(shift(inner));
}

Value log_of_positive(const Value& x) {
  return unary("log", clamp(x, 1));
}

Value either(const Value& mask, const Value& a, const Value& b) {
  const std::array inputs{a, b};
  return record("where", inputs, like("where", a), {mask});
}

Value mask_of(const Value& x) {
  return x.tape().allocate("lt", x.shape(), DType::boolean);
}

// discretized_gaussian_log_likelihood
Value likelihood(const Value& images, const Value& means, const Value& log_scales) {
  const Value centred = sub(images, means);
  const Value inverse = unary_of_output("exp", neg(log_scales));
  const Value upper = mul(inverse, shift(centred));
  const Value below_upper = part_below(upper);
  const Value lower = mul(inverse, shift(centred));
  const Value below_lower = part_below(lower);
  const Value log_below = log_of_positive(below_upper);
  const Value log_above = log_of_positive(neg(below_lower));
  const Value between = sub(below_upper, below_lower);
  const Value darkest = mask_of(images);
  const Value others = [&] {
    const Value brightest = mask_of(images);
    return either(brightest, log_above, log_of_positive(between));
  }();
  return either(darkest, log_below, others);
}

// mean_flat(x) / log(2)
Value bits_of_samples(const Value& x) {
  return scale(mean(x, {x.size(0)}));
}

// _vb_terms_bpd: the divergence, and at the first step the likelihood.
Value bound(const Value& output, const Value& images, const Value& noisy) {
  const Posterior true_one = posterior(images, noisy);
  const Said said = said_by(output, noisy);
  Value far = divergence(true_one, said);
  far = bits_of_samples(far);
  Value first = neg(likelihood(images, said.mean, scale(said.logarithm)));
  first = bits_of_samples(first);
  return either(images.tape().allocate("eq", {images.size(0)}, DType::boolean), first, far);
}

// What the model said, with a noise that the bound does not reach.
Value with_frozen_noise(const Value& output, const std::vector<Value>& parts) {
  return cat(std::array{parts[0].detached(), parts[1]}, output.shape());
}

}  // namespace

Value diffusion_loss(const Denoiser& model, const Value& images, bool learns_variances) {
  Tape& tape = images.tape();
  const Value noise = tape.allocate("randn_like", images.shape(), images.dtype());
  const Value noisy = scheduled_sum(images, noise);
  Value output = [&] {
    const Value steps = tape.allocate("tensor", {kSteps}, DType::i64);
    const Value times = tape.allocate("index", {images.size(0)}, DType::i64);
    return model(noisy);
  }();
  const Purpose before = tape.set_purpose(Purpose::loss);
  Value of_variance;
  Value frozen;
  if (learns_variances) {
    const std::vector<Value> parts = halves(output, images);
    frozen = with_frozen_noise(output, parts);
    of_variance = bound(frozen, images, noisy);
    output = parts[0];
  }
  // The targets of all kinds of models are made, and one is taken.
  Value left = [&] {
    const Posterior unread = posterior(images, noisy);
    return sub(noise, output);
  }();
  left = mean(pow(left), {images.size(0)});
  const Value each = of_variance.defined() ? add(left, of_variance) : left;
  Value loss = mean(each, {});
  tape.set_purpose(before);
  return loss;
}

}  // namespace shardplan::autograd
