#include "planner/activations/hf/hf_diffusers.h"

#include "planner/activations/adapters.h"
#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

void stream_passes(const UnitView& block, std::initializer_list<std::string_view> modules, std::string_view stream,
                   const Value& x) {
  for (const std::string_view module : modules) block.passes(std::string(module) + std::string(stream), x);
}

Value normed(const Value& x) {
  return layer_norm(x, Value(), Value());
}

Value modulated(const Value& x, const Value& factor, const Value& summand) {
  return add(mul(x, shift(factor)), summand);
}

Value embedder(const UnitView& unit, const std::string& name, const Value& x) {
  return linear(unary("silu", linear(x, unit[name + ".linear_1"])), unit[name + ".linear_2"]);
}

Value linear_of_part(const Value& part, const Parameters& layer) {
  if (part.size(0) == 1) return linear(part, layer);
  const Value gapped = part.laid_out(Layout::with_gaps);
  const auto rows = [&] { return view(gapped, {part.size(0) * part.size(1), part.size(2)}); };
  const Value product = linear(rows(), layer.weight, {}, layer.module->output);
  Value output = view(product, {part.size(0), part.size(1), layer.module->output});
  if (layer.bias.defined()) {
    output = output.tape().options().adds_in_place ? add_in_place(output, layer.bias) : add(output, layer.bias);
  }
  if (!layer.adapter.a.defined()) return output;
  // A cast leaves no gaps.
  const DType dtype = layer.adapter.a.dtype();
  const Value wide = dtype == part.dtype() ? view(rows(), part.shape()) : to(part, dtype).laid_out(Layout::in_order);
  return peft_adapted(wide, output, layer);
}

Value square_loss(ForwardContext& context, const Value& prediction, const Value& target) {
  Tape& tape = context.tape;
  const Purpose before = tape.set_purpose(Purpose::loss);
  const Value wide = to(prediction, DType::f32);
  Value loss = total(pow(sub(wide, to(target, DType::f32))));
  tape.set_purpose(before);
  return loss;
}

}  // namespace shardplan::autograd
