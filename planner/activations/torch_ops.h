// PyTorch's operations on Values: what each allocates, what its node saves, and what its formula allocates.
//
// Under Tape::begin_autocast, products, convolutions and attention take fp32 operands in autocast's dtype, and softmax,
// layer_norm, pow and rsqrt take them in fp32 (aten/src/ATen/autocast_mode.h).
//
// Facts are those of PyTorch 2.x: tools/autograd/derivatives.yaml and torch/csrc/autograd/FunctionsManual.cpp for what is
// saved and computed, aten/src/ATen/native for outputs and workspaces. Dtypes follow from the operands.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "planner/activations/tape.h"

namespace shardplan::autograd {

// torch's reshape: a view, which costs nothing, unless the tensor's layout asks for a copy; its backward likewise.
Value view(const Value& x, const Shape& shape);
// Swaps dims 1 and 2: [b, s, h, d] to [b, h, s, d] and back.
Value transpose(const Value& x);
// One that several parts are taken of: each part is a view; the backward concatenates their gradients (split, chunk).
std::vector<Value> split(const Value& x, std::span<const std::uint64_t> sizes);  // along the last dim
// x[..., from:to]: a view whose backward writes into zeros of the whole.
Value slice(const Value& x, Shape shape);
Value contiguous(const Value& x);  // a copy, for values that are not
Value expand(const Value& x, Shape shape);
Value copied(const Value& x, Shape shape);  // expanded where the shape is larger, and copied
Value cat(std::span<const Value> parts, Shape shape);

Value to(const Value& x, DType dtype);  // x itself where it has that dtype

Value add(const Value& a, const Value& b);  // broadcasts
Value sub(const Value& a, const Value& b);
Value mul(const Value& a, const Value& b);
Value scale(const Value& x);                         // by a number that needs no gradient: x * 0.5, x / 2
Value shift(const Value& x);                         // x + a number
Value scaled_in_place(const Value& x);               // x /= a number
Value add_in_place(const Value& a, const Value& b);  // a += b, which may be broadcast
Value neg(const Value& x);
Value pow(const Value& x);                // by a constant
Value mean(const Value& x);               // over the last dim, which stays as 1
Value mean(const Value& x, Shape shape);  // over a dim in the middle
Value total(const Value& x);              // the sum of everything: a scalar
Value rsqrt(const Value& x);
Value div(const Value& a, const Value& b);  // broadcasts; keeps b, and a where b needs a gradient
// where(mask, x, a number), masked_fill: keeps the mask. Undefined: a buffer's.
Value where(const Value& mask, const Value& x);
// x[..., [i]]: a copy. `shape`: what comes out. Its backward writes into zeros of the whole.
Value index(const Value& x, Shape shape);

// Saves its input: silu, gelu, relu's kin.
Value unary(std::string_view operation, const Value& x);
// Saves its output: tanh, sigmoid, relu, exp.
Value unary_of_output(std::string_view operation, const Value& x);
// x * 0.5 * (1 + tanh(0.79788456 * x * (1 + 0.044715 * x * x))), its backward written out by hand (GeLUFunction of
// transformers' modeling_bloom.py).
Value custom_gelu(const Value& x);
Value softmax(const Value& x);
Value softmax_in(const Value& x, DType dtype);  // of x in this dtype
Value dropout(const Value& x, double rate);     // x itself at rate 0 and outside training

// y = x W^T + b. `weight` may be stored transposed; `bias` may be undefined. `output`: features that come out.
Value linear(const Value& x, const Value& weight, const Value& bias, std::uint64_t output);
Value matmul(const Value& a, const Value& b, Shape shape);  // bmm: both are activations
// Saves its input, as cuDNN's and the plain one do. `shape`: what comes out.
Value convolution(const Value& x, const Value& weight, const Value& bias, Shape shape);
Value embedding(const Value& indices, const Value& weight);
// `weight` and `bias` may be undefined. Statistics are fp32.
Value layer_norm(const Value& x, const Value& weight, const Value& bias);
// torch.nn.RMSNorm since PyTorch 2.9: one kernel, which keeps its input and each row's statistic in fp32.
Value fused_rms_norm(const Value& x, const Value& weight);

// [b, g, s, d] to [b, g x times, s, d]: each head's copies follow it (repeat_interleave, repeat_kv); x itself for one.
Value repeat_heads(const Value& x, std::uint64_t times);
// torch.matmul of [b, h, m, k] and [b, h, k, n], either of them perhaps stored with its last dims swapped.
Value batched_matmul(const Value& a, const Value& b, const Shape& shape);

// torch.nn.functional.scaled_dot_product_attention: q [b, h, s, d], k [b, g, t, d], v [b, g, t, e] to [b, h, s, e].
struct SdpaOptions {
  Value mask{};         // undefined, boolean [b, 1, s, t], or of q's dtype
  bool causal = false;  // without a mask: every token sees those before it
  double dropout = 0;   // of the probabilities; kernels keep nothing of it but their random states
  // One head of keys for all queries without enable_gqa: only plain operations do that, whose products expand it.
  bool broadcasts = false;
};
// By the kernel that PyTorch chooses on a GPU of compute capability 8.0 or newer (aten/src/ATen/native/transformers/cuda/
// sdp_utils.cpp): FlashAttention for 16 bit without a mask, heads of one size up to 256; the memory-efficient one for as
// many key heads as query heads and head sizes that are whole multiples of 16 bytes; else plain operations, which keep
// the scores of all pairs.
Value scaled_dot_product_attention(const Value& q, const Value& k, const Value& v, const SdpaOptions& options);
// The kernels. Each saves q, k, v, its output, the log-sum-exp of each row in fp32 and two random states.
Value flash_attention(const Value& q, const Value& k, const Value& v);  // g may be a divisor of h
Value efficient_attention(const Value& q, const Value& k, const Value& v, const Value& bias);
Value plain_attention(const Value& q, const Value& k, const Value& v, const SdpaOptions& options);

// Mean cross entropy of [tokens, vocabulary]: log_softmax and nll_loss. A scalar. `labels` may be undefined.
Value cross_entropy(const Value& logits, const Value& labels = {});

}  // namespace shardplan::autograd
