#include "planner/activations/megatron/sizes.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {
namespace {

bool names(const Module& module, std::string_view part) {
  return module.name.find(part) != std::string::npos;
}

const Module* find_named(const Modules& modules, std::initializer_list<std::string_view> ends) {
  for (const std::string_view end : ends) {
    const auto found = std::find_if(modules.begin(), modules.end(), [&](const Module& module) {
      return module.kind == ModuleKind::linear && module.name.ends_with(end);
    });
    if (found != modules.end()) return &*found;
  }
  return nullptr;
}

bool has_bias(const Module& module) {
  return std::any_of(module.tensors.begin(), module.tensors.end(),
                     [](const Tensor& tensor) { return tensor.name == "bias"; });
}

// The projections of latent attention, as Megatron-LM and as Hugging Face's DeepSeek name them.
std::optional<MegatronLayer::Latent> latent_of(const Modules& modules) {
  const Module* down = find_named(modules, {"linear_kv_down_proj", "kv_a_proj_with_mqa"});
  const Module* up = find_named(modules, {"linear_kv_up_proj", "kv_b_proj"});
  if (down == nullptr || up == nullptr || down->output < up->input) return std::nullopt;
  const Module* query = find_named(modules, {"linear_q_up_proj", "q_b_proj"});
  const bool norms = std::any_of(modules.begin(), modules.end(), [](const Module& module) {
    return module.name.ends_with("kv_a_layernorm") || module.name.ends_with("kv_layernorm") ||
           (module.name.ends_with("linear_kv_up_proj") && module.kind != ModuleKind::linear);
  });
  return MegatronLayer::Latent{.query_rank = query == nullptr ? 0 : query->input,
                               .key_rank = up->input,
                               .rotary = down->output - up->input,
                               .norms = norms};
}

}  // namespace

std::optional<MegatronLayer> megatron_layer(const Modules& modules) {
  MegatronLayer layer;
  bool any_norm = false;
  for (const Module& module : modules) {
    if (module.kind == ModuleKind::scan || module.kind == ModuleKind::convolution) return std::nullopt;
    if (module.kind == ModuleKind::attention) {
      if (layer.heads > 0) {
        layer.cross_attention = true;
        continue;
      }
      const AttentionSizes& sizes = *module.attention;
      layer.heads = sizes.heads;
      layer.kv_heads = sizes.kv_heads;
      layer.head = sizes.head_size;
      layer.value = sizes.value_size > 0 ? sizes.value_size : sizes.head_size;
      layer.rotary = sizes.rotary;
    }
    if (module.kind == ModuleKind::rms_norm) layer.rms_norm = true;
    const bool norm = module.kind == ModuleKind::rms_norm || module.kind == ModuleKind::layer_norm;
    if (norm && (module.name.ends_with("q_layernorm") || module.name.ends_with("q_norm"))) layer.qk_norm = true;
    any_norm = any_norm || norm;
    if (module.kind == ModuleKind::linear && has_bias(module)) layer.bias = true;
    if (module.kind == ModuleKind::multiply && !names(module, "scale")) layer.gated = true;
    if (module.kind != ModuleKind::activation || module.output <= 1) continue;
    if (module.routing) {
      if (!layer.experts) layer.experts = MegatronLayer::Experts{};
      layer.experts->experts = module.routing->experts;
      layer.experts->chosen = module.routing->chosen;
      layer.experts->ffn = module.routing->fused ? module.output / module.routing->experts : module.output;
    } else if (names(module, "shared_expert")) {
      if (!layer.experts) layer.experts = MegatronLayer::Experts{};
      layer.experts->shared_ffn = module.output;
    } else {
      layer.ffn = module.output;
    }
  }
  if (layer.heads == 0 || !any_norm || (layer.ffn == 0 && !layer.experts)) return std::nullopt;
  layer.latent = latent_of(modules);
  return layer;
}

MegatronTokens megatron_tokens(const Setup& setup, const ClientSetup& client, std::uint64_t sequence) {
  const Parallelism& p = setup.parallel;
  if (sequence % p.context != 0) {
    throw ConfigError("--cp", "", fmt::format("{} ranks cannot share out a sequence of {}", p.context, sequence));
  }
  MegatronTokens tokens{.batch = client.micro_batch, .sequence = sequence / p.context, .whole = sequence};
  tokens.tokens = tokens.split = checked_multiply(tokens.batch, tokens.sequence);
  if (!p.sequence_parallel || p.tensor == 1) return tokens;
  if (tokens.sequence % p.tensor != 0) {
    throw ConfigError("--sequence-parallel", "",
                      fmt::format("{} ranks cannot share out {} positions", p.tensor, tokens.sequence));
  }
  tokens.split = tokens.tokens / p.tensor;
  return tokens;
}

}  // namespace shardplan
