#include "planner/families/decoder.h"

#include <fmt/format.h>

#include <algorithm>

namespace shardplan {

namespace {

Architecture read_sizes(ModelConfig& config, const Architecture& defaults) {
  Architecture a;
  a.vocabulary = config.size("vocab_size", defaults.vocabulary);
  a.hidden = config.size("hidden_size", defaults.hidden);
  if (defaults.intermediate > 0) {
    a.intermediate = config.size("intermediate_size", defaults.intermediate);
  } else {
    a.intermediate = config.optional_size("intermediate_size").value_or(4 * a.hidden);
  }
  a.layers = config.size("num_hidden_layers", defaults.layers);
  a.heads = config.size("num_attention_heads", defaults.heads);
  a.max_positions = config.size("max_position_embeddings", defaults.max_positions);
  return a;
}

std::uint64_t head_share(const ModelConfig& config, const Architecture& a) {
  config.require_divisor("num_attention_heads", a.heads, "hidden_size", a.hidden);
  return a.hidden / a.heads;
}

}  // namespace

Architecture read_decoder(ModelConfig& config, const Architecture& defaults) {
  Architecture a = read_sizes(config, defaults);
  a.kv_heads = a.heads;
  a.head_size = head_share(config, a);
  return a;
}

Architecture read_grouped_decoder(ModelConfig& config, const Architecture& defaults) {
  Architecture a = read_sizes(config, defaults);
  const auto read = [&](std::string_view attribute, std::uint64_t class_default) {
    const bool absent = !config.present(attribute) && class_default > 0;
    return absent ? config.size(attribute, class_default) : config.optional_size(attribute).value_or(0);
  };
  a.head_size = read("head_dim", defaults.head_size);
  if (a.head_size == 0) a.head_size = head_share(config, a);
  a.kv_heads = read("num_key_value_heads", defaults.kv_heads);
  if (a.kv_heads == 0) a.kv_heads = a.heads;
  config.require_divisor("num_key_value_heads", a.kv_heads, "num_attention_heads", a.heads);
  return a;
}

Architecture read_grouped_width(ModelConfig& config, const Architecture& defaults) {
  Architecture a = read_decoder(config, defaults);
  if (!config.present("num_key_value_heads") && defaults.kv_heads > 0) {
    a.kv_heads = config.size("num_key_value_heads", defaults.kv_heads);
  } else {
    a.kv_heads = config.optional_size("num_key_value_heads").value_or(a.heads);
  }
  config.require_divisor("num_key_value_heads", a.kv_heads, "num_attention_heads", a.heads);
  return a;
}

AttentionSizes attention_sizes(const Architecture& architecture, bool rotary) {
  return {architecture.heads, architecture.kv_heads, architecture.head_size, rotary};
}

AttentionWindow read_window(ModelConfig& config, std::uint64_t class_default) {
  return {.tokens = config.present("sliding_window") ? config.count("sliding_window", 0) : class_default};
}

std::optional<std::vector<bool>> read_whole_layers(const ModelConfig& config, std::uint64_t layers) {
  if (layers > ModelConfig::kMostListed) {
    config.fail("num_hidden_layers",
                fmt::format("expected at most {} layers of several kinds, found {}", ModelConfig::kMostListed, layers));
  }
  const auto types = config.texts("layer_types");
  if (!types) return std::nullopt;
  if (types->size() != layers) {
    config.fail("layer_types", fmt::format("expected one for each of {} layers, found {}", layers, types->size()));
  }
  std::vector<bool> whole;
  for (const std::string& type : *types) {
    whole.push_back(type == "full_attention");
    if (!whole.back() && type != "sliding_attention") {
      config.fail("layer_types", fmt::format("expected full_attention or sliding_attention, found {}", type));
    }
  }
  return whole;
}

AttentionWindow read_windows(ModelConfig& config, std::uint64_t class_default, std::uint64_t layers,
                             const std::function<bool(std::uint64_t)>& whole) {
  AttentionWindow window = read_window(config, class_default);
  const auto listed = read_whole_layers(config, layers);
  if (listed && window.tokens == 0 && std::find(listed->begin(), listed->end(), false) != listed->end()) {
    config.fail("sliding_window", "expected a number of tokens, since layer_types has sliding_attention");
  }
  if (window.tokens == 0) return {};
  for (std::uint64_t i = 0; i < layers; ++i) window.whole.push_back(listed ? listed->at(i) : whole(i));
  return window;
}

AttentionWindow read_qwen_windows(ModelConfig& config, std::uint64_t layers, std::uint64_t first_by_default) {
  if (!config.flag("use_sliding_window", false)) {
    read_whole_layers(config, layers);
    return {};
  }
  const std::uint64_t first = config.count("max_window_layers", first_by_default);
  return read_windows(config, 4096, layers, [&](std::uint64_t i) { return i < first; });
}

Modules windowed(Modules modules, const AttentionWindow& window) {
  for (Module& module : modules) {
    if (!module.attention) continue;
    module.attention->window = window.tokens;
    module.attention->whole = window.whole;
  }
  return modules;
}

Modules partly_rotated(const ModelConfig& config, Modules modules, double class_default) {
  const double part = config.factor("partial_rotary_factor", class_default);
  for (Module& module : modules) {
    if (!module.attention) continue;
    AttentionSizes& sizes = *module.attention;
    const auto features = static_cast<std::uint64_t>(static_cast<double>(sizes.head_size) * part);
    const std::uint64_t rotated = round_up(features, std::uint64_t{2});  // a sine and a cosine for each pair
    if (rotated < sizes.head_size) sizes.rotary_size = rotated;
  }
  return modules;
}

Modules clipped_projections(const ModelConfig& config, const Architecture& a) {
  if (!config.has("clip_qkv")) return {};
  config.factor("clip_qkv", 1);
  return activation("self_attn.clip_qkv", "clamp", (a.heads + 2 * a.kv_heads) * a.head_size);
}

Modules split_attention(std::string_view name, const Architecture& a, const AttentionOptions& options) {
  const std::uint64_t queries = a.heads * a.head_size;
  const std::uint64_t keys = a.kv_heads * a.head_size;
  return below(name,
               join({linear("q_proj", a.hidden, queries, options.bias), linear("k_proj", a.hidden, keys, options.bias),
                     linear("v_proj", a.hidden, keys, options.bias),
                     attention("attention", attention_sizes(a, options.rotary)), dropout("dropout", options.dropout),
                     linear(std::string(options.output), queries, a.hidden, options.output_bias), options.norms}));
}

Modules gated_mlp(std::string_view name, std::uint64_t hidden, std::uint64_t intermediate, const std::string& function,
                  bool bias) {
  return below(name, join({linear("gate_proj", hidden, intermediate, bias),
                           linear("up_proj", hidden, intermediate, bias), activation("act_fn", function, intermediate),
                           multiply("gate", intermediate), linear("down_proj", intermediate, hidden, bias)}));
}

Modules plain_mlp(std::string_view name, const std::string& up, const std::string& down, std::uint64_t hidden,
                  std::uint64_t intermediate, const std::string& function, bool bias) {
  return below(name, join({linear(up, hidden, intermediate, bias), activation("act", function, intermediate),
                           linear(down, intermediate, hidden, bias)}));
}

Modules norms_before(const Architecture& a) {
  return join({rms_norm("input_layernorm", a.hidden), rms_norm("post_attention_layernorm", a.hidden)});
}

Routing read_routing(ModelConfig& config, std::string_view attribute, std::uint64_t class_default,
                     std::uint64_t experts) {
  const std::uint64_t chosen = config.size(attribute, class_default);
  if (chosen > experts) {
    config.fail(attribute,
                fmt::format("expected at most the {} experts, {}", experts, config.found(attribute, chosen)));
  }
  return {.experts = experts, .chosen = chosen};
}

Modules gated_experts(std::string_view name, const Routing& routing, std::uint64_t hidden, std::uint64_t intermediate,
                      const std::string& function) {
  return routed(repeated(name, routing.experts, gated_mlp("", hidden, intermediate, function, false)), routing);
}

Modules fused_experts(std::string name, const Routing& routing, std::uint64_t input, std::uint64_t output,
                      Shape shape) {
  Modules modules = linear(std::move(name), routing.experts * input, routing.experts * output, false);
  modules[0].tensors[0] = {.name = {}, .shape = std::move(shape)};
  return modules;
}

std::span<const Head> decoder_heads() {
  static constexpr Head heads[] = {
      {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false},
      {"Model", "", "", HeadOutput::none, false},
      {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
      {"ForTokenClassification", "model", "score", HeadOutput::labels, true, 0.1},
      {"ForQuestionAnswering", "transformer", "qa_outputs", HeadOutput::span, true},
  };
  return heads;
}

std::span<const Head> mistral_heads() {
  static constexpr Head heads[] = {
      {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false},
      {"Model", "", "", HeadOutput::none, false},
      {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
      {"ForTokenClassification", "model", "score", HeadOutput::labels, true, 0.1},
      {"ForQuestionAnswering", "model", "qa_outputs", HeadOutput::span, true},
  };
  return heads;
}

}  // namespace shardplan
