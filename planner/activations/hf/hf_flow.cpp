// Glow and its kin (docs/flow-models.md), as plain PyTorch computes them: all that autograd keeps, or with recompute invert
// nothing of a step but what the last one of its level put out, from which each step's input is computed back.
#include <array>
#include <memory>

#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

Shape with_channels(Shape shape, std::uint64_t channels) {
  shape[1] = channels;
  return shape;
}

// Both halves of the channels: views.
std::vector<Value> chunk(const Value& x) {
  const Shape half = with_channels(x.shape(), x.size(1) / 2);
  std::vector<Value> parts = parts_of(x, std::array{half, half});
  for (Value& part : parts) part = part.laid_out(Layout::with_gaps);
  return parts;
}

// 2 x 2 pixels become one of four times the channels: a copy.
Value squeeze(const Value& x) {
  return copied(x, {x.size(0), 4 * x.size(1), x.size(2) / 2, x.size(3) / 2});
}

Value convolved(const Value& x, const Parameters& layer) {
  return convolution(x, layer.weight, layer.bias, with_channels(x.shape(), layer.module->output));
}

// conv(x) * exp(log_scale)
Value zero_convolution(const UnitView& block, const std::string& name, const Value& x) {
  const Value factors = unary_of_output("exp", block.tensor(name + ".log_scale"));
  return mul(convolved(x, block[name]), factors);
}

// What the kept half of the channels says of the other: a network of three convolutions.
Value coupling_network(const UnitView& block, const Value& kept) {
  Value hidden = unary_of_output("relu", convolved(kept, block["coupling.net.0"]));
  hidden = unary_of_output("relu", convolved(hidden, block["coupling.net.2"]));
  return zero_convolution(block, "coupling.net.4", hidden);
}

bool is_affine(const UnitView& block) {
  return block.has("coupling.sigmoid");
}

// The weight of the 1x1 convolution: its own tensor, or order x lower x (upper + diagonal).
Value permutation_weight(const UnitView& block, std::uint64_t channels) {
  if (Value weight = block.tensor("permutation.weight"); weight.defined()) return weight;
  Tape& tape = block.tensor("permutation.lower").tape();
  const Shape square{channels, channels};
  const Value order = tape.outside(square, block.tensor("permutation.lower").dtype());
  const Value sign = tape.outside({channels}, order.dtype());
  const Value lower = shift(scale(block.tensor("permutation.lower")));  // tril, then ones on the diagonal
  const Value upper = scale(block.tensor("permutation.upper"));         // triu
  const Value diagonal = mul(sign, unary_of_output("exp", block.tensor("permutation.log_diagonal")));
  const Value whole = add(upper, copied(diagonal, square));
  return matmul(matmul(order, lower, square), whole, square);
}

// torch.linalg.slogdet(x)[1]: its decomposition, pivots and sign are kept (derivatives.yaml, _linalg_slogdet).
Value slogdet(const Value& x) {
  Tape& tape = x.tape();
  Value logarithm = tape.allocate("slogdet", {}, x.dtype());
  std::vector<Value> saved{tape.allocate("slogdet LU", x.shape(), x.dtype()),
                           tape.allocate("slogdet pivots", {x.size(0)}, DType::i32),
                           tape.allocate("slogdet sign", {}, x.dtype())};
  return tape.record("slogdet", std::span(&x, 1), std::move(logarithm), std::move(saved),
                     [shape = x.shape(), dtype = x.dtype()](Tape& t, std::span<const Value>, std::vector<Value>&) {
                       const Value diagonal = t.allocate("slogdet backward", shape, dtype);
                       std::vector<Value> gradients;
                       gradients.push_back(t.allocate("slogdet backward", shape, dtype));
                       return gradients;
                     });
}

// Of the permutation, in fp32.
Value log_determinant(const UnitView& block, const Value& weight) {
  if (!block.tensor("permutation.weight").defined()) return total(block.tensor("permutation.log_diagonal"));
  return slogdet(view(to(weight, DType::f32), {weight.size(0), weight.size(1)}));
}

// What a step adds to the logarithm of the determinant, one number for each sample.
using Terms = std::vector<Value>;

Value actnorm(const UnitView& block, const Value& x, Terms& terms) {
  if (!block.has("actnorm.scale")) return x;
  const Value log_scale = block.tensor("actnorm.log_scale");
  const Value y = add(mul(x, unary_of_output("exp", log_scale)), block.tensor("actnorm.bias"));
  terms.push_back(scale(total(log_scale)));
  return y;
}

Value permuted(const UnitView& block, const Value& x, Terms& terms) {
  if (!block.has("permutation")) return copied(x, x.shape());  // flipped
  const Value weight = permutation_weight(block, x.size(1));
  const Value y = convolution(x, weight, {}, x.shape());
  terms.push_back(scale(log_determinant(block, weight)));
  return y;
}

Value coupled(const UnitView& block, const Value& x, Terms& terms) {
  const std::vector<Value> halves = chunk(x);
  const Value said = coupling_network(block, halves[0]);
  if (!is_affine(block)) return cat(std::array{halves[0], add(halves[1], said)}, x.shape());
  const std::vector<Value> parts = chunk(said);
  const Value factors = unary_of_output("sigmoid", parts[1]);
  const Value changed = mul(add(halves[1], parts[0]), factors);
  terms.push_back(sum_over(unary("log", factors), {x.size(0)}));
  return cat(std::array{halves[0], changed}, x.shape());
}

// y itself, with the gradient of each term beside its own: the loss is the sum of all terms.
Value with_terms(const Value& y, const Terms& terms) {
  std::vector<Value> inputs{y};
  for (const Value& term : terms) inputs.push_back(term);
  std::vector<Shape> shapes;
  std::vector<DType> dtypes;
  for (const Value& term : terms) {
    shapes.push_back(term.shape());
    dtypes.push_back(term.dtype());
  }
  return y.tape().record("terms", inputs, y.detached(), {},
                         [shapes, dtypes](Tape& tape, std::span<const Value>, std::vector<Value>& incoming) {
                           std::vector<Value> gradients{incoming[0]};
                           for (std::size_t i = 0; i < shapes.size(); ++i) {
                             gradients.push_back(tape.allocate("gradient", shapes[i], dtypes[i]));
                           }
                           return gradients;
                         });
}

Value step(const UnitView& block, const Value& x) {
  Terms terms;
  Value y = actnorm(block, x, terms);
  y = permuted(block, y, terms);
  y = coupled(block, y, terms);
  return with_terms(y, terms);
}

// The step's input, from what it put out.
Value inverse(const UnitView& block, const Value& y) {
  const Value before = [&] {
    const std::vector<Value> halves = chunk(y);
    const Value said = coupling_network(block, halves[0]);
    if (!is_affine(block)) return cat(std::array{halves[0], sub(halves[1], said)}, y.shape());
    const std::vector<Value> parts = chunk(said);
    const Value factors = unary_of_output("sigmoid", parts[1]);
    const Value quotient = div(halves[1], factors);
    return cat(std::array{halves[0], sub(quotient, parts[0])}, y.shape());
  }();
  Value x = before;
  if (block.has("permutation")) {
    const Value weight = to(permutation_weight(block, y.size(1)), DType::f32);
    const Value inverted = to(unary("inverse", weight), y.dtype());
    x = convolution(before, inverted, {}, y.shape());
  } else {
    x = copied(before, y.shape());
  }
  if (!block.has("actnorm.scale")) return x;
  const Value centred = sub(x, block.tensor("actnorm.bias"));
  return mul(centred, unary_of_output("exp", neg(block.tensor("actnorm.log_scale"))));
}

// The logarithm of a normal density of z, summed over each sample; `said`: mean and logarithm of the deviation, or nothing.
Value log_density(const Value& z, const Value& said) {
  const Shape samples{z.size(0)};
  if (!said.defined()) return sum_over(scale(pow(z)), samples);
  const std::vector<Value> parts = chunk(said);
  const Value distance = pow(sub(z, parts[0]));
  const Value precision = unary_of_output("exp", scale(parts[1]));
  const Value terms = add(scale(parts[1]), mul(distance, precision));
  return sum_over(scale(terms), samples);
}

// Half of the channels leaves.
Value split_off(const UnitView& block, const Value& x) {
  const std::vector<Value> halves = chunk(x);
  const Value said = block.has("prior") ? zero_convolution(block, "prior", halves[0]) : Value();
  return with_terms(halves[0], {log_density(halves[1], said)}).laid_out(Layout::with_gaps);
}

Value glow_block(ForwardContext& context, const UnitView& block, const Value& input) {
  const std::uint64_t channels = 2 * block.module("coupling.net.0").input;
  Value x = input;
  // Without a learned prior nothing in the last step of a level says that half of it leaves.
  if (channels == 2 * x.size(1)) x = split_off(block, x);
  if (channels != x.size(1)) {
    x = squeeze(x);
    context.inverted = std::make_shared<Value>();
  }
  if (context.client.recompute == RecomputeKind::invert) {
    const auto forward = [block](const Value& value) { return step(block, value); };
    const auto back = [block](const Value& value) { return inverse(block, value); };
    x = context.tape.invertible(forward, back, x, context.inverted);
  } else {
    x = step(block, x);
  }
  return block.has("prior") ? split_off(block, x) : x;
}

Value glow(ForwardContext& context) {
  Tape& tape = context.tape;
  const ModuleRun& first = first_blocks(context, "flows");
  std::uint64_t channels = 0;
  for (const Module& module : first.modules) {
    if (module.name == "coupling.net.0") channels = module.input / 2;
  }
  const std::uint64_t side = context.model.architecture.image_side;
  const Value image = tape.outside({context.batch(), channels, side, side}, context.setup.policy.compute);
  Value z = run_blocks(context, glow_block, image, "flows");
  context.inverted.reset();
  Value said;
  if (const auto unit = unit_with(context, "prior")) {
    said = zero_convolution(*unit, "prior", tape.allocate("zeros", z.shape(), z.dtype()));
  }
  const Purpose before = tape.set_purpose(Purpose::loss);
  Value loss = total(log_density(z, said));
  tape.set_purpose(before);
  return loss;
}

}  // namespace

std::span<const HfFamily> hf_flow_families() {
  static constexpr HfFamily families[] = {{"glow", glow}};
  return families;
}

}  // namespace shardplan::autograd
