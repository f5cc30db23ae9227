#include "planner/activations/torch_programs/torch_decoder.h"

#include <fmt/format.h>

#include <algorithm>

#include "planner/activations/adapters.h"
#include "planner/activations/stage_ends.h"
#include "planner/activations/torch_ops.h"
#include "planner/activations/torch_programs/torch_tensor_parallel.h"

namespace shardplan::autograd {

Value fp32_rms_norm(const Parameters& layer, const Value& input, std::uint64_t ranks) {
  const Value x = distributed(input, ranks);
  const Value narrow = [&] {
    const Value wide = to(x, DType::f32);
    if (ranks > 1) x.tape().adds_apart(wide);
    const Value normed = mul(wide, [&] {
      Value variance = pow(wide);
      variance = mean(variance);
      variance = shift(variance);
      return rsqrt(variance);
    }());
    return to(normed, x.dtype());
  }();
  return mul(narrow, layer.weight);
}

Value adapted_linear(const UnitView& unit, std::string_view name, const Value& x) {
  Parameters layer = unit[name];
  layer.output = layer.weight.size(0);  // this rank's
  const Value result = base_linear(x, layer);
  return layer.adapter.a.defined() ? plain_adapted(x, result, layer) : result;
}

Value gated_feed_forward(const UnitView& block, const Value& x) {
  const Value product = [&] {
    const Value gate = unary("silu", adapted_linear(block, "mlp.gate_proj", x));
    return mul(gate, adapted_linear(block, "mlp.up_proj", x));
  }();
  return adapted_linear(block, "mlp.down_proj", product);
}

Value decoder_features(ForwardContext& context, BlockForward block) {
  const Parallelism& parallel = context.setup.parallel;
  const Architecture& sizes = context.model.architecture;
  const Shape text{context.batch(), context.tokens() / parallel.context};
  Value hidden;
  if (const auto unit = unit_with(context, "model.embed_tokens")) {
    hidden = parallel_embedding(context.tape.outside(text, DType::i64), (*unit)["model.embed_tokens"].weight,
                                parallel.tensor, sizes.vocabulary);
  } else {
    hidden = received(context.tape, {text[0], text[1] / parallel.tensor, sizes.hidden}, context.parameter_dtype());
    context.tape.keep(hidden);  // the stage's own, until its backward has ended
  }
  hidden = run_blocks(context, block, std::move(hidden));
  const auto unit = unit_with(context, "model.norm");
  return unit ? fp32_rms_norm((*unit)["model.norm"], hidden, parallel.tensor) : hidden;
}

const AttentionSizes& attention_sizes_of(const UnitView& block) {
  return *block.module("self_attn.attention").attention;
}

}  // namespace shardplan::autograd

namespace shardplan {

std::string torch_decoder_refuses(const Model& model, const Setup& setup, std::string_view profile) {
  if (model.catalog.family != "llama" && model.catalog.family != "mistral") {
    return fmt::format("profile {} knows families llama and mistral alone", profile);
  }
  if (setup.policy.compute != setup.policy.parameter) {
    return fmt::format("profile {} does not know autocast ({})", profile, setup.policy.name);
  }
  for (const UnitRun& run : model.catalog.runs) {
    for (const Tensor& tensor : run.tensors) {
      if (tensor.name.find(".lora_embedding_A.") != std::string::npos ||
          tensor.name.find(".modules_to_save.") != std::string::npos) {
        return fmt::format("profile {} does not know adapters of embeddings and modules beside them", profile);
      }
    }
  }
  return {};
}

}  // namespace shardplan
