// FLUX.2: no module has a bias, and scales, shifts and gates are the same in all blocks of a kind.
#include <fmt/format.h>

#include "planner/families/decoder.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kTimeFeatures = 256;  // of the noise level: sines and cosines
constexpr std::uint64_t kTokensOfASide = 64;  // of 1024 pixels: pipeline_flux2_klein.py, default_sample_size
constexpr std::uint64_t kMostPatch = 64;
constexpr Head kWhole[] = {{"", "", "", HeadOutput::none, false}};

// Every token times one vector: only the tokens are kept for backward.
Modules scaled(std::string name, std::uint64_t width) {
  return activation(std::move(name), "scale", width);
}

constexpr Alias kFlux2Aliases[] = {{"num_hidden_layers", "num_layers"}};

Modules flux2_double_block(const Architecture& a) {
  const auto square = [&](std::string name) { return linear(std::move(name), a.hidden, a.hidden, false); };
  const auto fed = [&](const char* name) {
    return below(name, join({linear("linear_in", a.hidden, 2 * a.intermediate, false),
                             activation("act_fn", "silu", a.intermediate), multiply("product", a.intermediate),
                             linear("linear_out", a.intermediate, a.hidden, false)}));
  };
  const auto stream_in = [&](const std::string& stream) {
    return join({plain_norm("norm1" + stream, a.hidden), scaled("modulate1" + stream, a.hidden)});
  };
  const auto stream_out = [&](const std::string& stream) {
    return join({scaled("gate1" + stream, a.hidden), plain_norm("norm2" + stream, a.hidden),
                 scaled("modulate2" + stream, a.hidden)});
  };
  return join({stream_in(""), stream_in("_context"),
               below("attn", join({square("to_q"), square("to_k"), square("to_v"), rms_norm("norm_q", a.head_size),
                                   rms_norm("norm_k", a.head_size), attention("attention", attention_sizes(a, true)),
                                   square("to_out.0"), rms_norm("norm_added_q", a.head_size),
                                   rms_norm("norm_added_k", a.head_size), square("add_q_proj"), square("add_k_proj"),
                                   square("add_v_proj"), square("to_add_out")})),
               stream_out(""), fed("ff"), scaled("gate2", a.hidden), stream_out("_context"), fed("ff_context"),
               scaled("gate2_context", a.hidden)});
}

Modules flux2_single_block(const Architecture& a) {
  return join({plain_norm("norm", a.hidden), scaled("modulate", a.hidden),
               below("attn", join({linear("to_qkv_mlp_proj", a.hidden, 3 * a.hidden + 2 * a.intermediate, false),
                                   activation("mlp_act_fn", "silu", a.intermediate),
                                   multiply("product", a.intermediate), rms_norm("norm_q", a.head_size),
                                   rms_norm("norm_k", a.head_size), attention("attention", attention_sizes(a, true)),
                                   linear("to_out", a.hidden + a.intermediate, a.hidden, false)})),
               scaled("gate", a.hidden)});
}

// The transformer of FLUX.2: blocks in which image and text have weights of their own, then blocks that know one row of tokens
// (diffusers' transformer_flux2.py). It has no table of positions.
void flux2_transformer(ModelConfig& config, ModelBuilder& model) {
  Architecture a;
  a.layers = config.size("num_hidden_layers", 8);
  a.heads = a.kv_heads = config.size("num_attention_heads", 48);
  a.head_size = config.size("attention_head_dim", 128);
  constexpr std::uint64_t kMost = ModelConfig::kLargestSize / 8;  // a block has up to six such vectors in one
  a.hidden = a.heads * a.head_size;
  if (a.hidden > kMost) config.fail("attention_head_dim", fmt::format("makes a size of more than {}", kMost));
  const double intermediate = static_cast<double>(a.hidden) * config.factor("mlp_ratio", 3);
  if (intermediate < 1 || intermediate > static_cast<double>(kMost)) {
    config.fail("mlp_ratio", fmt::format("makes an MLP of {} features", intermediate));
  }
  a.intermediate = static_cast<std::uint64_t>(intermediate);
  a.image_side = kTokensOfASide;
  const std::uint64_t singles = config.size("num_single_layers", 48);
  const std::uint64_t channels = config.size("in_channels", 128);
  const std::uint64_t patch = config.size("patch_size", 1);
  if (patch > kMostPatch) config.fail("patch_size", fmt::format("expected at most {}, found {}", kMostPatch, patch));
  const std::uint64_t output = patch * patch * (config.has("out_channels") ? config.size("out_channels", 0) : channels);
  const std::uint64_t waves = config.size("timestep_guidance_channels", kTimeFeatures);
  const auto level = [&](const std::string& name) {
    return below("time_guidance_embed." + name,
                 join({linear("linear_1", waves, a.hidden, false), activation("act", "silu", a.hidden),
                       linear("linear_2", a.hidden, a.hidden, false)}));
  };
  const auto modulation = [&](const std::string& name, std::uint64_t vectors) {
    return below(name,
                 join({activation("act_fn", "silu", a.hidden), linear("linear", a.hidden, vectors * a.hidden, false)}));
  };

  model.describe(a);
  model.add(
      join({level("timestep_embedder"), config.flag("guidance_embeds", true) ? level("guidance_embedder") : Modules{},
            modulation("double_stream_modulation_img", 6), modulation("double_stream_modulation_txt", 6),
            modulation("single_stream_modulation", 3), linear("x_embedder", channels, a.hidden, false),
            linear("context_embedder", config.size("joint_attention_dim", 15360), a.hidden, false)}));
  model.blocks("transformer_blocks", a.layers, flux2_double_block(a));
  model.blocks("single_transformer_blocks", singles, flux2_single_block(a));
  model.add(join(
      {below("norm_out", join({activation("silu", "silu", a.hidden), linear("linear", a.hidden, 2 * a.hidden, false),
                               plain_norm("norm", a.hidden), scaled("modulate", a.hidden)})),
       linear("proj_out", a.hidden, output, false)}));
}

}  // namespace

std::span<const Family> flux2_families() {
  static const Family families[] = {
      {"Flux2Transformer2DModel", "Flux2Transformer2DModel", kWhole, kFlux2Aliases, flux2_transformer},
  };
  return families;
}

}  // namespace shardplan
