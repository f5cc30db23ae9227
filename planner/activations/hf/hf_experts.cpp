#include "planner/activations/hf/hf_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_indexing.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

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

std::uint64_t choices_of(const ForwardContext& context, std::uint64_t i, const Routing& routing, std::uint64_t tokens) {
  const Choices choices{.experts = routing.experts, .chosen = routing.chosen, .tokens = tokens};
  const ExpertLoad& load = context.client.expert_load;
  return pairs_of_first(i + 1, choices, load) - pairs_of_first(i, choices, load);
}

Value chosen_by(Tape& tape, std::uint64_t count) {
  return tape.allocate("nonzero", {count, 2}, DType::i64);
}

Choice most_probable(const Routing& routing, const Value& logits, DType dtype) {
  auto [weights, experts] = topk(softmax_in(logits, DType::f32), routing.chosen);
  if (routing.normalized) weights = divide_by_sum(weights);
  return {to(weights, dtype), experts};
}

Value jittered(const UnitView& block, std::string_view name, const Value& x) {
  if (!block.has(fmt::format("{}.input_jitter", name))) return x;
  return mul_in_place(x, x.tape().allocate("uniform", x.shape(), x.dtype()));
}

Value mixture(ForwardContext& context, const UnitView& block, const ExpertNames& names, const Value& hidden,
              const MixtureOptions& options) {
  Tape& tape = hidden.tape();
  const std::uint64_t tokens = hidden.size(0) * hidden.size(1);
  const Value x = view(jittered(block, names.part, hidden), {tokens, hidden.size(2)});
  const Value logits = linear(x, block[fmt::format("{}.{}", names.part, names.router)]);
  const Routing& routing = routing_of(block, names);
  keep_for_balance(context, routing, logits);
  const Choice choice = options.choose(routing, logits, x.dtype());
  Value sum = tape.allocate("zeros", x.shape(), x.dtype());
  const Value mask = tape.allocate("one_hot", {tokens, routing.chosen, routing.experts}, DType::i64);
  const Value with_tokens = tape.allocate("nonzero", {options.all_run ? 0 : routing.experts, 1}, DType::i64);
  for (std::uint64_t i = 0; i < routing.experts; ++i) {
    const std::uint64_t count = choices_of(context, i, routing, tokens);
    if (count == 0 && !options.all_run) continue;
    const Value chosen = chosen_by(tape, count);
    const Value output = expert(block, i, names, index_rows(x, chosen, count));
    const Value weighted = mul(output, index_at(choice.weights, chosen, {count, 1}));
    sum = index_add(sum, chosen, weighted);
  }
  if (block.has(fmt::format("{}.shared_expert.up_proj", names.part))) sum = with_shared_expert(block, names, x, sum);
  return view(sum, hidden.shape());
}

void keep_for_balance(ForwardContext& context, const Routing& routing, const Value& said) {
  if (routing.balanced) context.routed.push_back(said);
}

namespace {

bool routes(const Module& module) {
  return module.routing.has_value();
}

// Layers with a router, of those that a rank holds, or of the whole model.
template <typename Runs, typename ModulesOf>
std::uint64_t routers(const Runs& runs, ModulesOf modules_of_run) {
  std::uint64_t layers = 0;
  for (const auto& run : runs) {
    const ModuleRun* modules = modules_of_run(run);
    if (modules != nullptr && std::any_of(modules->modules.begin(), modules->modules.end(), routes))
      layers += run.count;
  }
  return layers;
}

const Routing& first_routing(const Model& model) {
  for (const ModuleRun& run : model.modules) {
    const auto expert = std::find_if(run.modules.begin(), run.modules.end(), routes);
    if (expert != run.modules.end()) return *expert->routing;
  }
  throw NotModelled("a model without experts");
}

// Which part of all choices falls on each expert, [chosen, experts].
Value share_of_tokens(ForwardContext& context, const Value& mask) {
  Tape& tape = context.tape;
  const Shape share{mask.size(1), mask.size(2)};
  const Value wide = tape.allocate("to", mask.shape(), DType::f32);
  if (context.client.mask == MaskKind::none) return tape.allocate("mean", share, DType::f32);
  const Value counted = tape.allocate("reshape", mask.shape(), DType::i64);  // the batch's mask, for every choice
  const Value product = tape.allocate("mul", mask.shape(), DType::f32);
  const std::array sums{tape.allocate("sum", share, DType::f32), tape.allocate("sum", share, DType::i64)};
  return tape.allocate("div", share, DType::f32);
}

// The mean probability of each expert, [experts].
Value mean_probability(ForwardContext& context, const Value& probabilities) {
  const Shape experts{probabilities.size(1)};
  if (context.client.mask == MaskKind::none) return mean(probabilities, experts);
  const Value counted = context.tape.allocate("reshape", probabilities.shape(), DType::i64);
  const Value sum = sum_over(mul(probabilities, counted), experts);
  return div(sum, context.tape.allocate("sum", experts, DType::i64));
}

}  // namespace

Value balancing_loss(ForwardContext& context, RouterSays said) {
  Tape& tape = context.tape;
  const Routing& routing = first_routing(context.model);
  const std::uint64_t layers = routers(context.model.modules, [](const ModuleRun& run) { return &run; });
  if (routers(context.held.runs, [&](const UnitRun& run) { return modules_of(context.model, run); }) != layers) {
    throw NotModelled("output_router_logits of layers on other ranks");
  }
  const std::uint64_t rows = layers * context.batch() * context.tokens();
  Value probabilities = cat(context.routed, {rows, routing.experts});
  if (said == RouterSays::logits) probabilities = softmax(probabilities);
  const Largest largest = topk(probabilities.detached(), routing.chosen);
  const Value mask = tape.allocate("one_hot", {rows, routing.chosen, routing.experts}, DType::i64);
  const Value share = share_of_tokens(context, mask);
  const Value mean = mean_probability(context, probabilities);
  return scale(total(mul(share, view(mean, {1, routing.experts}))));
}

}  // namespace shardplan::autograd
