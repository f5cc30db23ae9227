#include "planner/activations/hf/hf_experts.h"

#include <fmt/format.h>

#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

// The weights of the experts of each token.
Value route(const Routing& routing, const Value& logits, DType dtype) {
  Value weights = softmax_in(logits, DType::f32);
  weights = topk(weights, routing.chosen).values;
  if (routing.normalized) weights = divide_by_sum(weights);
  return to(weights, dtype);
}

// One more expert for all tokens, with a gate of its own (Qwen2MoeSparseMoeBlock).
Value with_shared_expert(const UnitView& block, const ExpertNames& names, const Value& x, const Value& sum) {
  const auto name = [&](std::string_view module) { return fmt::format("{}.{}", names.part, module); };
  Value shared = gated_mlp(block, name("shared_expert"), x);
  shared = mul(unary_of_output("sigmoid", linear(x, block[name("shared_expert_gate")])), shared);
  return add(sum, shared);
}

}  // namespace

const Routing& routing_of(const UnitView& block, const ExpertNames& names) {
  return *block.module(fmt::format("{}.experts.0.{}", names.part, names.gate)).routing;
}

Value expert(const UnitView& block, std::uint64_t number, const ExpertNames& names, const Value& x) {
  const std::string name = fmt::format("{}.experts.{}", names.part, number);
  const auto layer = [&](std::string_view part) { return block[fmt::format("{}.{}", name, part)]; };
  const Value product = [&] {
    const Value gate = activate(linear(x, layer(names.gate)), block.first_of(ModuleKind::activation, name)->function);
    return mul(gate, linear(x, layer(names.up)));
  }();
  return linear(product, layer(names.down));
}

std::uint64_t choices_of(std::uint64_t i, const Routing& routing, std::uint64_t tokens) {
  const std::uint64_t choices = tokens * routing.chosen;
  return (i + 1) * choices / routing.experts - i * choices / routing.experts;
}

Value chosen_by(Tape& tape, std::uint64_t count) {
  return tape.allocate("nonzero", {count, 2}, DType::i64);
}

Value mixture(const UnitView& block, const ExpertNames& names, const Value& hidden, bool all_run) {
  Tape& tape = hidden.tape();
  const std::uint64_t tokens = hidden.size(0) * hidden.size(1);
  const Value x = view(hidden, {tokens, hidden.size(2)});
  const Value logits = linear(x, block[fmt::format("{}.gate", names.part)]);
  const Routing& routing = routing_of(block, names);
  const Value weights = route(routing, logits, x.dtype());
  Value sum = tape.allocate("zeros", x.shape(), x.dtype());
  const Value mask = tape.allocate("one_hot", {tokens, routing.chosen, routing.experts}, DType::i64);
  for (std::uint64_t i = 0; i < routing.experts; ++i) {
    const std::uint64_t count = choices_of(i, routing, tokens);
    if (count == 0 && !all_run) continue;
    const Value chosen = chosen_by(tape, count);
    const Value output = expert(block, i, names, index_rows(x, chosen, count));
    const Value weighted = mul(output, index_at(weights, chosen, {count, 1}));
    sum = index_add(sum, chosen, weighted);
  }
  if (block.has(fmt::format("{}.shared_expert.up_proj", names.part))) sum = with_shared_expert(block, names, x, sum);
  return view(sum, hidden.shape());
}

}  // namespace shardplan::autograd
