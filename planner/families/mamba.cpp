// State-space models: Mamba and Falcon-Mamba, Mamba-2, and Jamba, which alternates Mamba with attention and experts.
#include <fmt/format.h>

#include "planner/families/decoder.h"

namespace shardplan {
namespace {

constexpr Head kMambaHeads[] = {
    {"ForCausalLM", "backbone", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
};
constexpr Head kJambaHeads[] = {
    {"ForCausalLM", "model", "lm_head", HeadOutput::vocabulary, false},
    {"Model", "", "", HeadOutput::none, false},
    {"ForSequenceClassification", "model", "score", HeadOutput::labels, false},
};

// expand x hidden, rounded down; `expand` is the attribute's value.
std::uint64_t inner_size(const ModelConfig& config, std::string_view attribute, double expand, std::uint64_t hidden) {
  const double inner = expand * static_cast<double>(hidden);
  if (!(inner >= 1 && inner <= static_cast<double>(ModelConfig::kLargestSize))) {
    config.fail(attribute, fmt::format("expected a factor that makes 1 to {} of hidden_size, {}, found {}",
                                       ModelConfig::kLargestSize, hidden, expand));
  }
  return static_cast<std::uint64_t>(inner);
}

bool is_automatic(const ModelConfig& config, std::string_view attribute) {
  return !config.present(attribute) || config.says(attribute, "auto");
}

// A sixteenth of the width, rounded up, where the file says nothing or "auto".
std::uint64_t time_step_rank(const ModelConfig& config, std::string_view attribute, std::uint64_t hidden) {
  return is_automatic(config, attribute) ? (hidden + 15) / 16 : config.required_size(attribute);
}

struct Mixer {
  std::uint64_t hidden = 0;
  std::uint64_t inner = 0;
  std::uint64_t state = 0;
  std::uint64_t rank = 0;  // of the time step
  std::uint64_t kernel = 0;
  bool bias = false;  // of the projections in and out
  bool convolution_bias = false;
  std::string function;
};

// RMS norms of what x_proj puts out: the time step, B and C.
Modules mixer_norms(const Mixer& m) {
  return join({rms_norm("dt_layernorm", m.rank), rms_norm("b_layernorm", m.state), rms_norm("c_layernorm", m.state)});
}

Modules without_weights(Modules modules) {
  for (Module& module : modules) module.tensors.clear();
  return modules;
}

// out(scan(act(conv(x))) * act(gate)): in_proj makes x and gate, x_proj the scan's step, B and C of its input.
Modules mamba_mixer(std::string_view name, const Mixer& m, Modules norms) {
  return below(name,
               join({parameter("A_log", {m.inner, m.state}), parameter("D", {m.inner}),
                     convolution("conv1d", m.inner, m.inner, {m.kernel}, m.convolution_bias, m.inner),
                     activation("act", m.function, m.inner), linear("in_proj", m.hidden, 2 * m.inner, m.bias),
                     linear("x_proj", m.inner, m.rank + 2 * m.state, false), linear("dt_proj", m.rank, m.inner, true),
                     scan("scan", m.inner, m.state), activation("gate_act", m.function, m.inner),
                     multiply("gate", m.inner), linear("out_proj", m.inner, m.hidden, m.bias), std::move(norms)}));
}

// `wide`: what is carried from block to block is fp32 (residual_in_fp32).
void mamba_decoder(ModelBuilder& model, const Architecture& a, Modules mixer, bool tied_by_default, bool wide) {
  model.describe(a);
  model.add(embedding("embeddings", a.vocabulary, a.hidden));
  model.blocks("layers", a.layers,
               join({rms_norm("norm", a.hidden), std::move(mixer), wide ? residual("fp32") : Modules{}}));
  model.add(rms_norm("norm_f", a.hidden));
  model.head("embeddings", tied_by_default);
}

void mamba_with(ModelConfig& config, ModelBuilder& model, bool norms) {
  Architecture a;
  a.vocabulary = config.size("vocab_size", 50280);
  a.hidden = config.size("hidden_size", 768);
  a.layers = config.size("num_hidden_layers", 32);
  const auto inner = config.optional_size("intermediate_size");  // goes before expand
  a.intermediate = inner ? *inner : inner_size(config, "expand", config.factor("expand", 2), a.hidden);
  const Mixer m{.hidden = a.hidden,
                .inner = a.intermediate,
                .state = config.size("state_size", 16),
                .rank = time_step_rank(config, "time_step_rank", a.hidden),
                .kernel = config.size("conv_kernel", 4),
                .bias = config.flag("use_bias", false),
                .convolution_bias = config.flag("use_conv_bias", true),
                .function = config.text("hidden_act", "silu")};
  mamba_decoder(model, a, mamba_mixer("mixer", m, norms ? without_weights(mixer_norms(m)) : Modules{}), true,
                config.flag("residual_in_fp32", true));
}

// modeling_mamba.py
void mamba(ModelConfig& config, ModelBuilder& model) {
  mamba_with(config, model, false);
}

// Mamba with norms without weights inside the mixer (modeling_falcon_mamba.py).
void falcon_mamba(ModelConfig& config, ModelBuilder& model) {
  mamba_with(config, model, true);
}

// Heads that share one A, D and step each; the input, B and C pass one convolution (modeling_mamba2.py).
void mamba2(ModelConfig& config, ModelBuilder& model) {
  Architecture a;
  a.vocabulary = config.size("vocab_size", 32768);
  a.hidden = config.size("hidden_size", 4096);
  a.layers = config.size("num_hidden_layers", 64);
  const std::uint64_t inner = inner_size(config, "expand", config.factor("expand", 2), a.hidden);
  a.intermediate = inner;
  const std::uint64_t heads = config.size("num_heads", 128);
  const std::uint64_t head_size = config.size("head_dim", 64);
  if (heads * head_size != inner) {
    config.fail("num_heads", fmt::format("expected num_heads x head_dim to be expand x hidden_size, {}, found {} x {}",
                                         inner, heads, head_size));
  }
  const std::uint64_t state = config.size("state_size", 128);
  const std::uint64_t convolved = inner + 2 * config.size("n_groups", 8) * state;
  const std::uint64_t kernel = config.size("conv_kernel", 4);
  const bool bias = config.flag("use_bias", false);
  const std::string function = config.text("hidden_act", "silu");
  Modules chunked = scan("scan", inner, state);
  chunked[0].chunk = config.size("chunk_size", 256);
  const Modules mixer =
      join({parameter("dt_bias", {heads}), parameter("A_log", {heads}), parameter("D", {heads}),
            convolution("conv1d", convolved, convolved, {kernel}, config.flag("use_conv_bias", true), convolved),
            activation("act", function, convolved), linear("in_proj", a.hidden, inner + convolved + heads, bias),
            std::move(chunked), activation("gate_act", function, inner), multiply("gate", inner),
            rms_norm("norm", inner), linear("out_proj", inner, a.hidden, bias)});
  mamba_decoder(model, a, below("mixer", mixer), false, config.flag("residual_in_fp32", true));
}

// Every period-th layer, from the offset-th on, is special.
struct Period {
  std::uint64_t period = 1;
  std::uint64_t offset = 0;
  bool holds(std::uint64_t layer) const { return layer % period == offset; }
};

Period read_period(ModelConfig& config, std::string_view period_attribute, std::string_view offset_attribute,
                   const Period& defaults) {
  const Period p{config.size(period_attribute, defaults.period), config.count(offset_attribute, defaults.offset)};
  if (p.offset >= p.period) {
    config.fail(offset_attribute,
                fmt::format("expected less than {}, {}, found {}", period_attribute, p.period, p.offset));
  }
  return p;
}

Architecture read_jamba(ModelConfig& config) {
  Architecture a = read_decoder(
      config,
      {.vocabulary = 65536, .hidden = 4096, .intermediate = 14336, .layers = 32, .heads = 32, .max_positions = 262144});
  constexpr std::string_view kKeyHeads = "num_key_value_heads";
  a.kv_heads =
      config.present(kKeyHeads) ? config.optional_size(kKeyHeads).value_or(a.heads) : config.size(kKeyHeads, 8);
  config.require_divisor(kKeyHeads, a.kv_heads, "num_attention_heads", a.heads);
  return a;
}

Modules jamba_mixer(ModelConfig& config, const Architecture& a, const std::string& function) {
  const auto expand = static_cast<double>(config.size("mamba_expand", 2));
  const Mixer m{.hidden = a.hidden,
                .inner = inner_size(config, "mamba_expand", expand, a.hidden),
                .state = config.size("mamba_d_state", 16),
                .rank = time_step_rank(config, "mamba_dt_rank", a.hidden),
                .kernel = config.size("mamba_d_conv", 4),
                .bias = config.flag("mamba_proj_bias", false),
                .convolution_bias = config.flag("mamba_conv_bias", true),
                .function = function};
  return mamba_mixer("mamba", m, mixer_norms(m));
}

Modules jamba_experts(ModelConfig& config, const Architecture& a, std::uint64_t experts, const std::string& function) {
  Routing routing = read_routing(config, "num_experts_per_tok", 2, experts);
  routing.balanced = config.flag("output_router_logits", false);
  return below("feed_forward", join({router("router", a.hidden, experts, false),
                                     gated_experts("experts", routing, a.hidden, a.intermediate, function)}));
}

// Mamba layers with norms inside, attention without positions every few layers, experts every other layer
// (modeling_jamba.py). One expert is a plain MLP.
void jamba(ModelConfig& config, ModelBuilder& model) {
  const Architecture a = read_jamba(config);
  const Period attends = read_period(config, "attn_layer_period", "attn_layer_offset", {8, 4});
  const Period routes = read_period(config, "expert_layer_period", "expert_layer_offset", {2, 1});
  const std::uint64_t experts = config.listed("num_experts", 16);
  const std::string function = config.text("hidden_act", "silu");
  const Modules attention =
      split_attention("self_attn", a, {.rotary = false, .dropout = config.number("attention_dropout", 0)});
  const Modules mamba = jamba_mixer(config, a, function);
  const Modules mlp = gated_mlp("feed_forward", a.hidden, a.intermediate, function, false);
  const Modules mixture = experts > 1 ? jamba_experts(config, a, experts, function) : mlp;

  struct Kind {
    bool attention = false;
    bool experts = false;
    bool operator==(const Kind&) const = default;
  };
  model.describe(a);
  model.add(embedding("embed_tokens", a.vocabulary, a.hidden));
  model.blocks(
      "layers", a.layers, [&](std::uint64_t i) { return Kind{attends.holds(i), routes.holds(i)}; },
      [&](const Kind& kind) {
        return join({kind.attention ? attention : mamba, kind.experts ? mixture : mlp,
                     rms_norm("input_layernorm", a.hidden), rms_norm("pre_ff_layernorm", a.hidden)});
      });
  model.add(rms_norm("final_layernorm", a.hidden));
  model.head("embed_tokens", false);
}

}  // namespace

std::span<const Family> mamba_families() {
  static const Family families[] = {
      {"mamba", "Mamba", kMambaHeads, {}, mamba},
      {"falcon_mamba", "FalconMamba", kMambaHeads, {}, falcon_mamba},
      {"mamba2", "Mamba2", kMambaHeads, {}, mamba2},
      {"jamba", "Jamba", kJambaHeads, {}, jamba},
  };
  return families;
}

}  // namespace shardplan
