// Mamba-2 as transformers computes it without mamba-ssm's kernels (torch_forward of modeling_mamba2.py of transformers 4.57):
// chunks of tokens whose states are products with all pairs inside a chunk, each of them a tensor, in fp32.
#include <array>

#include "base/bytes.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_mamba.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_formula.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

struct Sizes {
  std::uint64_t batch = 0;
  std::uint64_t tokens = 0;
  std::uint64_t heads = 0;
  std::uint64_t features = 0;  // of a head
  std::uint64_t groups = 0;
  std::uint64_t states = 0;
  std::uint64_t chunk = 0;
  std::uint64_t inner() const { return heads * features; }
  std::uint64_t padded() const { return round_up(tokens, chunk); }
  std::uint64_t chunks() const { return padded() / chunk; }
};

Sizes sizes_of(const UnitView& block, const Value& x) {
  const Module& scan = block.module("mixer.scan");
  Sizes z{.batch = x.size(0), .tokens = x.size(1)};
  z.heads = block.tensor("mixer.A_log").elements();
  z.features = scan.output / z.heads;
  z.states = scan.input / scan.output;
  z.groups = (block.module("mixer.conv1d").output - scan.output) / (2 * z.states);
  z.chunk = scan.chunk;
  return z;
}

// apply_mask_to_padding_states
Value masked(const ForwardContext& context, const Value& x) {
  if (context.client.mask == MaskKind::none || x.size(0) == 1 || x.size(1) == 1) return x;
  return mul(x, context.tape.outside({x.size(0), x.size(1), 1}, DType::i64));
}

Value exponential(const Value& x) {
  return unary_of_output("exp", x);
}

// Its backward flips, sums and flips.
Value cumulative(const Value& x) {
  return x.tape().record("cumsum", std::span(&x, 1), like("cumsum", x), {}, gradient_after("cumsum backward", x, 2));
}

Value padded(const Value& x, Shape shape) {
  return simple("pad", x, x.tape().allocate("pad", std::move(shape), x.dtype()));
}

// Sums of the numbers from each token to each later one, minus infinity for others: [..., n] to [..., n, n].
Value segment_sum(const Value& x) {
  Tape& tape = x.tape();
  const std::uint64_t n = x.size(-1);
  const auto above = [&] {
    const Value lower = tape.allocate("tril", {n, n}, DType::boolean);
    return tape.allocate("bitwise_not", {n, n}, DType::boolean);
  };
  Shape pairs = x.shape();
  pairs.push_back(n);
  Value sums = where(above(), expand(x, pairs));
  sums = cumulative(sums);
  return where(above(), sums);
}

// What convolution and projections make of a block's input.
struct Inputs {
  Value convolved;
  Value x;     // [b, s, heads, features], fp32
  Value step;  // [b, s, heads]
  Value in;    // B, [b, s, heads, states], fp32
  Value out;   // C
};

// B and C of a group, for each of its heads.
Value for_heads(const Value& part, const Sizes& z) {
  const Value wide = to(unsqueezed(part, {z.batch, z.tokens, z.groups, z.states}), DType::f32);
  return copied(wide, {z.batch, z.tokens, z.heads, z.states});
}

Inputs inputs_of(ForwardContext& context, const UnitView& block, const Sizes& z, const std::vector<Value>& projected) {
  const Parameters kernel = block["mixer.conv1d"];
  const std::uint64_t channels = kernel.module->output;
  const std::uint64_t longer = z.tokens + kernel.weight.size(-1) - 1;
  Value mixed = convolution(transpose(projected[1]), kernel.weight, kernel.bias, {z.batch, channels, longer});
  mixed = slice(mixed, {z.batch, channels, z.tokens}).laid_out(Layout::with_gaps);
  mixed = masked(context, transpose(activate(mixed, block, "mixer.act")));
  const std::uint64_t states = z.groups * z.states;
  const std::vector<Value> parts = split(mixed, std::array{z.inner(), states, states});
  Inputs inputs;
  inputs.convolved = mixed;
  inputs.step = clamp(unary("softplus", add(projected[2], block.tensor("mixer.dt_bias"))), 2);
  inputs.x = to(unsqueezed(parts[0], {z.batch, z.tokens, z.heads, z.features}), DType::f32);
  inputs.in = for_heads(parts[1], z);
  inputs.out = for_heads(parts[2], z);
  return inputs;
}

// The same in chunks of k of c, with the step's decay.
struct Chunks {
  Value x;      // [b, c, k, heads, features], times the step
  Value decay;  // [b, heads, c, k]
  Value in;     // [b, c, k, heads, states]
  Value out;
};

Chunks chunks_of(const Inputs& inputs, const Value& decay, const Sizes& z) {
  const Value x = mul(inputs.x, unsqueezed(inputs.step, {z.batch, z.tokens, z.heads, 1}));
  const Value slowed = mul(decay, inputs.step);
  const auto chunked = [&](const Value& part, std::uint64_t width) {
    const Value whole = padded(part, {z.batch, z.padded(), z.heads, width});
    return unsqueezed(whole, {z.batch, z.chunks(), z.chunk, z.heads, width});
  };
  Chunks chunks;
  chunks.x = chunked(x, z.features);
  chunks.decay = unsqueezed(padded(slowed, {z.batch, z.padded(), z.heads}), {z.batch, z.heads, z.chunks(), z.chunk});
  chunks.in = chunked(inputs.in, z.states);
  chunks.out = chunked(inputs.out, z.states);
  return chunks;
}

struct Scanned {
  Value y;                    // [b, s, heads x features] in fp32
  std::vector<Value> locals;  // of torch_forward, which live until it returns
};

// The recurrence: what a token reads inside its chunk, and of the chunks before.
Scanned scan(const UnitView& block, Inputs inputs, const Sizes& z) {
  Tape& tape = inputs.x.tape();
  const auto [b, s, h, p, groups, n, k] = z;
  const std::uint64_t c = z.chunks();
  const Value decay = neg(exponential(to(block.tensor("mixer.A_log"), DType::f32)));
  const Value skipped = mul(unsqueezed(block.tensor("mixer.D"), {h, 1}), padded(inputs.x, {b, z.padded(), h, p}));
  const Chunks chunk = chunks_of(inputs, decay, z);
  const Value convolved = inputs.convolved;
  inputs = {};
  const Value sums = cumulative(chunk.decay);
  const Value from_each = exponential(segment_sum(chunk.decay));
  const Value pairs = mul(unsqueezed(chunk.out, {b, c, k, 1, h, n}), unsqueezed(chunk.in, {b, c, 1, k, h, n}));
  const Value scores = sum_over(pairs, {b, c, k, k, h});
  const Value masked_scores = mul(unsqueezed(scores, {b, c, k, k, h, 1}), unsqueezed(from_each, {b, c, k, k, h, 1}));
  const Value weights = sum_over(masked_scores, {b, c, k, k, h});
  const Value inside =
      sum_over(mul(unsqueezed(weights, {b, c, k, k, h, 1}), unsqueezed(chunk.x, {b, c, 1, k, h, p})), {b, c, k, h, p});
  const Value to_end = exponential(sub(slice(sums, {b, h, c, 1}), sums));
  const Value kept = mul(chunk.in, unsqueezed(to_end, {b, c, k, h, 1}));
  const Value states =
      sum_over(mul(unsqueezed(kept, {b, c, k, h, 1, n}), unsqueezed(chunk.x, {b, c, k, h, p, 1})), {b, c, h, p, n});
  const Value before = tape.allocate("zeros", {b, 1, h, p, n}, DType::f32);
  const Value all_states = cat(std::array{before, states}, {b, c + 1, h, p, n});
  const Value between = exponential(segment_sum(padded(slice(sums, {b, h, c}), {b, h, c + 1})));
  const Value passed =
      sum_over(mul(unsqueezed(between, {b, c + 1, c + 1, h, 1, 1}), unsqueezed(all_states, {b, c + 1, 1, h, p, n})),
               {b, c + 1, h, p, n});
  const Value carried = slice(passed, {b, c, h, p, n});
  const Value from_start = exponential(sums);
  const Value read = mul(unsqueezed(chunk.out, {b, c, k, h, 1, n}), unsqueezed(carried, {b, c, 1, h, p, n}));
  const Value outside = mul(sum_over(read, {b, c, k, h, p}), unsqueezed(from_start, {b, c, k, h, 1}));
  Value y = add(inside, outside);
  y = add(unsqueezed(y, {b, z.padded(), h, p}), skipped);
  return {
      unsqueezed(slice(y, {b, s, h, p}), {b, s, h * p}),
      {convolved, skipped, chunk.x, chunk.decay, chunk.in, chunk.out, sums,   from_each,  pairs, scores, masked_scores,
       weights,   inside,  to_end,  kept,        before,   between,   passed, from_start, read,  outside}};
}

Value mixer(ForwardContext& context, const UnitView& block, const Value& x) {
  const Sizes z = sizes_of(block, x);
  const Value projected = linear(masked(context, x), block["mixer.in_proj"]);
  const std::vector<Value> parts =
      split(projected, std::array{z.inner(), projected.size(-1) - z.inner() - z.heads, z.heads});
  const Scanned scanned = scan(block, inputs_of(context, block, z, parts), z);
  const Value normed = [&] {
    const Value gate = activate(to(parts[0], DType::f32), "silu");
    return rms_norm(block["mixer.norm"], mul(scanned.y, gate));
  }();
  return linear(to(normed, x.dtype()), block["mixer.out_proj"]);
}

Value mamba2_block(ForwardContext& context, const UnitView& block, const Value& input) {
  return block_around(context, block, input, mixer);
}

Value mamba2(ForwardContext& context) {
  return state_space_lm(context, mamba2_block, causal_loss);
}

}  // namespace

std::span<const HfFamily> hf_mamba2_families() {
  static constexpr HfFamily families[] = {{"mamba2", mamba2}};
  return families;
}

}  // namespace shardplan::autograd
