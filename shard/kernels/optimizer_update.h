// One optimizer step over a range of elements: unscale and clip, update, round, in a single pass over memory.
//
//   optimizer_update({.kind = OptimizerKind::adamw, .lr = 3e-4, .step = step, .gradient_factor = factor},
//                    {.parameter = {DType::bf16, weights}, .master = master, .gradient = {DType::bf16, gradient},
//                     .first_moment = m, .second_moment = v});
//
// Formulas, for each element, in fp32, every operation rounded on its own (no fused multiply-add), in the order
// written; what stands in [] is formed in double and rounded to fp32 once; g = gradient gradient_factor, in fp32:
//
//   adamw         p = p [1 - lr weight_decay]
//                 m = lerp(m, g, [1 - beta1]);  v = v [beta2] + ([1 - beta2] g) g
//                 p = p + ([-lr / (1 - beta1^step)] m) / (sqrt(v) / [sqrt(1 - beta2^step)] + [eps])
//   adam          g = g + [weight_decay] p, then m, v and p as above
//   sgd           p = p + [-lr] (g + [weight_decay] p)
//   sgd_momentum  m = m [momentum] + (g + [weight_decay] p);  p = p + [-lr] m
//   lion          c = m [beta1] + [1 - beta1] g;  p = p [1 - lr weight_decay] + [-lr] sign(c)
//                 m = m [beta2] + [1 - beta2] g
//   ema           ema = lerp(ema, p, [1 - ema_decay]), after the above
//
//   lerp(a, b, w) = a + w (b - a) if w < 1/2, else b + (w - 1) (b - a).   sign(0) = 0; sign(NaN) = NaN.
//
// Sources: torch.optim.AdamW, Adam and SGD (2.15, foreach=False, fused=False), operation by operation: the same bits
// as PyTorch's where it rounds each operation once. Its stock CPU kernels do not (fused multiply-adds with AVX2, MKL's
// square root), which moves last bits. Lion: Chen et al., arXiv 2302.06675, algorithm 2, in the order of the authors'
// PyTorch code. EMA: torch.optim.swa_utils.get_ema_multi_avg_fn. Infinities and NaNs travel as IEEE 754 says.
//
// The result for an element depends on that element alone: the same bits at any position, alignment and length, for
// every level of processor. Stateless; any number of threads on disjoint ranges. No allocation.
#pragma once

#include <cstdint>
#include <span>

#include "planner/policy.h"
#include "shard/kernels/arrays.h"

namespace shardplan {

// Defaults are PyTorch's for AdamW. Lion's authors use beta2 = 0.99; PyTorch's Adam and SGD have no weight decay.
struct UpdateOptions {
  OptimizerKind kind = OptimizerKind::adamw;
  double lr = 1e-3;
  double beta1 = 0.9;     // adamw, adam, lion
  double beta2 = 0.999;   // adamw, adam, lion
  double momentum = 0.9;  // sgd_momentum
  double eps = 1e-8;      // adamw, adam
  double weight_decay = 1e-2;
  std::uint64_t step = 1;  // number of this step; the first is 1
  // Inverse loss scale times clip coefficient. 1 changes no bit.
  float gradient_factor = 1.0F;
  double ema_decay = 0.999;  // used where there is an ema array
};

// All of the same length, none overlapping another. The moments are those that states_of(kind) names, zero before the
// first step; the others stay empty. Which arrays there are decides where the exact parameter is kept:
//   neither master nor master_rest   in `parameter`: fp32, or rounded to its 16 bits once per step;
//   master                           in `master`; `parameter` is only written: the master in its dtype;
//   master_rest                      split over both, `parameter` being bf16: see split_master.h.
// Moments of 16 bits are computed in fp32 and rounded to nearest even, once.
struct UpdateArrays {
  Elements parameter;
  std::span<float> master{};
  std::span<std::uint16_t> master_rest{};
  ConstElements gradient;
  Elements first_moment;
  Elements second_moment;
  std::span<float> ema{};
};

// A CHECK fails for arrays that contradict the options or each other, and for step 0; nothing is written then.
void optimizer_update(const UpdateOptions& options, const UpdateArrays& arrays,
                      const OptimizerKernels& kernels = best_optimizer_kernels());

// What a loop over the elements needs of a call, checked as above: for those who bring a loop of their own.
struct UpdateCall {
  UpdateScalars scalars;
  UpdatePointers arrays;
};
UpdateCall checked_update(const UpdateOptions& options, const UpdateArrays& arrays);

}  // namespace shardplan
