#include "planner/activations/adapters.h"

#include <array>

#include "base/bytes.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr std::uint64_t kScaleBlock = 64;  // elements that share a scale, in 4 bits

Shape with_last(Shape shape, std::uint64_t size) {
  shape.back() = size;
  return shape;
}

// What a weight in 4 bits is written out with: its scales in fp32, and all of it in `dtype`.
std::array<Value, 2> written_out(Tape& tape, std::uint64_t elements, DType dtype) {
  Value scales = tape.workspace("scales", bytes_for(DType::f32, divide_up(elements, kScaleBlock)));
  return {std::move(scales), tape.workspace("dequantised weight", bytes_for(dtype, elements))};
}

Value linear_of_4_bits(const Value& x, const Parameters& layer, bool keeps_input) {
  Tape& tape = x.tape();
  const std::uint64_t elements = layer.weight.elements();
  Value y;
  {
    const auto weight = written_out(tape, elements, x.dtype());
    y = tape.allocate("matmul_4bit", with_last(x.shape(), layer.output), x.dtype());
  }
  std::vector<Value> saved;
  if (keeps_input) saved.push_back(x);
  return tape.record(
      "matmul_4bit", std::span(&x, 1), std::move(y), std::move(saved),
      [elements, shape = x.shape(), dtype = x.dtype()](Tape& t, std::span<const Value>, std::vector<Value>&) {
        const auto weight = written_out(t, elements, dtype);
        std::vector<Value> gradients;
        gradients.push_back(t.allocate("matmul_4bit backward", shape, dtype));
        return gradients;
      });
}

Value linear_of_8_bits(const Value& x, const Parameters& layer) {
  Tape& tape = x.tape();
  const std::uint64_t elements = layer.weight.elements();
  const Shape shape = with_last(x.shape(), layer.output);
  Value y;
  {
    Value narrow = x;
    if (x.dtype() != DType::f16) narrow = tape.allocate("to", x.shape(), DType::f16);
    const std::array quantised{tape.allocate("int8_vectorwise_quant", x.shape(), DType::i8),
                               tape.allocate("row scales", {x.elements() / x.size(-1)}, DType::f32)};
    narrow.reset();
    const Value product = tape.workspace("int8 product", bytes_for(DType::f32, shardplan::elements(shape)));
    y = tape.allocate("matmul_8bit", shape, x.dtype());
  }
  return tape.record(
      "matmul_8bit", std::span(&x, 1), std::move(y), {x},
      [elements, input = x.shape(), dtype = x.dtype()](Tape& t, std::span<const Value>, std::vector<Value>&) {
        const Value weight = t.workspace("dequantised weight", bytes_for(dtype, elements));
        std::vector<Value> gradients;
        gradients.push_back(t.allocate("matmul_8bit backward", input, dtype));
        return gradients;
      });
}

// B(A(dropout(x))) x scale. Each step lets go of what came before it.
Value low_rank(const Value& x, const Adapter& adapter) {
  Value value = [&] { return linear(dropout(x, adapter.dropout), adapter.a, Value(), adapter.a.size(0)); }();
  value = linear(value, adapter.b, Value(), adapter.b.size(0));
  return scale(value);
}

}  // namespace

Value base_linear(const Value& x, const Parameters& layer, const QuantisedOptions& options) {
  if (layer.weight.dtype() == DType::nf4) return linear_of_4_bits(x, layer, options.keeps_input);
  if (layer.weight.dtype() == DType::i8) return linear_of_8_bits(x, layer);
  return linear(x, layer.weight, layer.bias, layer.output);
}

Value peft_adapted(const Value& x, const Value& result, const Parameters& layer) {
  const bool four_bits = layer.weight.dtype() == DType::nf4;
  const bool quantised = four_bits || layer.weight.dtype() == DType::i8;
  const Value base = four_bits ? copied(result, result.shape()) : result;
  const Value wide = to(x, layer.adapter.a.dtype());
  if (!quantised) {
    Value sum = add(base, low_rank(wide, layer.adapter));
    return to(sum, result.dtype());
  }
  Value more = low_rank(wide, layer.adapter);
  more = to(more, result.dtype());
  return add(base, more);
}

Value plain_adapted(const Value& x, const Value& result, const Parameters& layer) {
  return add(result, low_rank(x, layer.adapter));
}

}  // namespace shardplan::autograd
