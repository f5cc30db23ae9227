// Diffusion: transformers on latent patches, the autoencoder that makes the latents, and the pipeline of both with its
// text encoders. Adaptive norms have no tensors of their own; a linear module on the condition scales what they put
// out.
#include <fmt/format.h>

#include <set>
#include <utility>

#include "planner/families/decoder.h"
#include "planner/families/pipeline.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kTimeFeatures = 256;  // sines and cosines of a time step

// diffusers' and DiT's classes have no heads.
constexpr Head kWhole[] = {{"", "", "", HeadOutput::none, false}};

// The product of the factors, which is a size that follows from `attribute`.
std::uint64_t product(const ModelConfig& config, std::string_view attribute,
                      std::initializer_list<std::uint64_t> factors) {
  std::uint64_t result = 1;
  for (const std::uint64_t factor : factors) {
    if (factor > 0 && result > ModelConfig::kLargestSize / factor) {
      config.fail(attribute, fmt::format("makes a size of more than {}", ModelConfig::kLargestSize));
    }
    result *= factor;
  }
  return result;
}

// A table of sines and cosines in two directions.
void require_quarters(const ModelConfig& config, std::string_view attribute, std::uint64_t hidden) {
  if (hidden % 4 == 0) return;
  config.fail(attribute, fmt::format("expected a multiple of 4 features for the table of positions, found {}", hidden));
}

// Every token times one vector: only the tokens are kept for backward.
Modules scaled(std::string name, std::uint64_t width) {
  return activation(std::move(name), "scale", width);
}

// second(silu(first(x)))
Modules embedder(std::string_view name, const std::string& first, const std::string& second, std::uint64_t input,
                 std::uint64_t hidden) {
  return below(name, join({linear(first, input, hidden, true), activation("act", "silu", hidden),
                           linear(second, hidden, hidden, true)}));
}

Modules dit_block(const Architecture& a) {
  return join(
      {plain_norm("norm1", a.hidden), scaled("modulate1", a.hidden),
       below("attn",
             join({linear("qkv", a.hidden, 3 * a.hidden, true), attention("attention", attention_sizes(a, false)),
                   linear("proj", a.hidden, a.hidden, true)})),
       scaled("gate1", a.hidden), plain_norm("norm2", a.hidden), scaled("modulate2", a.hidden),
       plain_mlp("mlp", "fc1", "fc2", a.hidden, a.intermediate, "gelu_pytorch_tanh", true), scaled("gate2", a.hidden),
       activation("adaLN_modulation.0", "silu", a.hidden), linear("adaLN_modulation.1", a.hidden, 6 * a.hidden, true)});
}

// DiT: a transformer conditioned on class and time, its table of positions a frozen parameter (facebookresearch/DiT's
// models.py; attention and MLP are timm's).
void dit(ModelConfig& config, ModelBuilder& model) {
  Architecture a;
  a.hidden = config.size("hidden_size", 1152);
  a.layers = config.size("depth", 28);
  a.heads = a.kv_heads = config.size("num_heads", 16);
  config.require_divisor("num_heads", a.heads, "hidden_size", a.hidden);
  require_quarters(config, "hidden_size", a.hidden);
  a.head_size = a.hidden / a.heads;
  const double intermediate = static_cast<double>(a.hidden) * config.factor("mlp_ratio", 4);
  if (intermediate < 1 || intermediate > static_cast<double>(ModelConfig::kLargestSize)) {
    config.fail("mlp_ratio", fmt::format("makes an MLP of {} features", intermediate));
  }
  a.intermediate = static_cast<std::uint64_t>(intermediate);

  const std::uint64_t patch = config.size("patch_size", 2);
  const std::uint64_t channels = config.size("in_channels", 4);
  a.image_side = config.size("input_size", 32);
  const std::uint64_t side = a.image_side / patch;
  if (side == 0) config.fail("patch_size", fmt::format("expected at most input_size, found {}", patch));
  a.max_positions = product(config, "input_size", {side, side});
  const std::uint64_t output =
      product(config, "patch_size", {patch, patch, channels, config.flag("learn_sigma", true) ? 2U : 1U});
  const double dropped = config.number("class_dropout_prob", 0.1);
  const std::uint64_t classes = config.size("num_classes", 1000) + (dropped > 0 ? 1 : 0);

  model.describe(a);
  model.add(
      join({frozen(parameter("pos_embed", {1, a.max_positions, a.hidden})),
            convolution("x_embedder.proj", channels, a.hidden, {patch, patch}, true),
            embedder("t_embedder.mlp", "0", "2", kTimeFeatures, a.hidden), dropout("y_embedder.token_drop", dropped),
            embedding("y_embedder.embedding_table", classes, a.hidden)}));
  model.blocks("blocks", a.layers, dit_block(a));
  model.add(below("final_layer",
                  join({plain_norm("norm_final", a.hidden), scaled("modulate", a.hidden),
                        linear("linear", a.hidden, output, true), activation("adaLN_modulation.0", "silu", a.hidden),
                        linear("adaLN_modulation.1", a.hidden, 2 * a.hidden, true)})));
}

// A norm whose scales, shifts and gates, `vectors` in all, are linear in the condition.
Modules adaptive_norm(std::string_view name, std::uint64_t hidden, std::uint64_t vectors) {
  return below(name, join({activation("silu", "silu", hidden), linear("linear", hidden, vectors * hidden, true),
                           plain_norm("norm", hidden), scaled("modulate", hidden)}));
}

// SD3's text and image have weights of their own and attend to both.
struct JointBlock {
  bool dual = false;  // the image attends to itself once more
  bool last = false;  // the text is not used afterwards
  bool operator==(const JointBlock&) const = default;
};

class JointBlocks {
 public:
  JointBlocks(const Architecture& sizes, std::string qk_norm) : a_(sizes), qk_norm_(std::move(qk_norm)) {}

  Modules operator()(const JointBlock& block) const {
    const Modules core = attention("attention", attention_sizes(a_, false));
    const Modules image = join({queries("norm_", "to_", ""), core, linear("to_out.0", a_.hidden, a_.hidden, true)});
    const Modules text = join({queries("norm_added_", "add_", "_proj"),
                               block.last ? Modules{} : linear("to_add_out", a_.hidden, a_.hidden, true)});
    return join({adaptive_norm("norm1", a_.hidden, block.dual ? 9 : 6),
                 adaptive_norm("norm1_context", a_.hidden, block.last ? 2 : 6), below("attn", join({image, text})),
                 scaled("gate", a_.hidden),
                 block.dual ? join({below("attn2", image), scaled("gate2", a_.hidden)}) : Modules{}, feed_forward(""),
                 block.last ? Modules{} : join({scaled("gate_context", a_.hidden), feed_forward("_context")})});
  }

 private:
  Modules norm(std::string name) const {
    if (qk_norm_ == "rms_norm") return rms_norm(std::move(name), a_.head_size);
    if (qk_norm_ == "layer_norm") return layer_norm(std::move(name), a_.head_size);
    return qk_norm_.empty() ? Modules{} : plain_norm(std::move(name), a_.head_size);
  }

  // Of one stream: the norms of queries and keys, and the projections.
  Modules queries(const std::string& norms, const std::string& prefix, const std::string& suffix) const {
    const auto projection = [&](const char* to) { return linear(prefix + to + suffix, a_.hidden, a_.hidden, true); };
    return join({norm(norms + "q"), norm(norms + "k"), projection("q"), projection("k"), projection("v")});
  }

  Modules feed_forward(const std::string& stream) const {
    return join(
        {plain_norm("norm2" + stream, a_.hidden), scaled("modulate2" + stream, a_.hidden),
         plain_mlp("ff" + stream + ".net", "0.proj", "2", a_.hidden, a_.intermediate, "gelu_pytorch_tanh", true),
         scaled("gate_ff" + stream, a_.hidden)});
  }

  Architecture a_;
  std::string qk_norm_;  // empty: none
};

constexpr Alias kSd3Aliases[] = {{"num_hidden_layers", "num_layers"}};

Architecture read_sd3(ModelConfig& config) {
  Architecture a;
  a.layers = config.size("num_hidden_layers", 18);
  a.heads = a.kv_heads = config.size("num_attention_heads", 18);
  a.head_size = config.size("attention_head_dim", 64);
  a.hidden = product(config, "attention_head_dim", {a.heads, a.head_size});
  a.intermediate = 4 * a.hidden;
  require_quarters(config, "attention_head_dim", a.hidden);
  const std::uint64_t caption = config.size("caption_projection_dim", 1152);
  if (caption != a.hidden) {
    config.fail("caption_projection_dim",
                fmt::format("expected num_attention_heads x attention_head_dim, {}, found {}", a.hidden, caption));
  }
  return a;
}

std::string read_qk_norm(const ModelConfig& config) {
  if (!config.has("qk_norm")) return {};
  const std::string norm = config.text("qk_norm", "");
  if (norm == "rms_norm" || norm == "layer_norm" || norm == "fp32_layer_norm") return norm;
  config.fail("qk_norm",
              fmt::format(R"(expected "rms_norm", "layer_norm", "fp32_layer_norm" or null, found "{}")", norm));
}

// The transformer of Stable Diffusion 3 and 3.5: image patches and text side by side (MMDiT), a table of positions that
// is a buffer, of which the image takes the middle (diffusers' transformer_sd3.py).
void sd3_transformer(ModelConfig& config, ModelBuilder& model) {
  Architecture a = read_sd3(config);
  const std::uint64_t patch = config.size("patch_size", 2);
  const std::uint64_t side = config.size("sample_size", 128) / patch;
  if (side == 0) config.fail("patch_size", fmt::format("expected at most sample_size, found {}", patch));
  a.max_positions = product(config, "sample_size", {side, side});
  a.image_side = config.size("sample_size", 128);
  const std::uint64_t channels = config.size("in_channels", 16);
  const bool same_channels = config.present("out_channels") && !config.has("out_channels");
  const std::uint64_t output =
      product(config, "patch_size", {patch, patch, same_channels ? channels : config.size("out_channels", 16)});
  const auto dual = config.counts("dual_attention_layers").value_or(std::vector<std::uint64_t>{});
  const std::set<std::uint64_t> dual_layers(dual.begin(), dual.end());

  model.describe(a);
  model.add(join({convolution("pos_embed.proj", channels, a.hidden, {patch, patch}, true),
                  embedder("time_text_embed.timestep_embedder", "linear_1", "linear_2", kTimeFeatures, a.hidden),
                  embedder("time_text_embed.text_embedder", "linear_1", "linear_2",
                           config.size("pooled_projection_dim", 2048), a.hidden),
                  linear("context_embedder", config.size("joint_attention_dim", 4096), a.hidden, true)}));
  if (const std::uint64_t rows = config.count("pos_embed_max_size", 96); rows > 0) {
    model.buffer("pos_embed.pos_embed", {1, product(config, "pos_embed_max_size", {rows, rows}), a.hidden});
  }
  model.blocks(
      "transformer_blocks", a.layers,
      [&](std::uint64_t layer) { return JointBlock{dual_layers.contains(layer), layer + 1 == a.layers}; },
      JointBlocks(a, read_qk_norm(config)));
  model.add(join({adaptive_norm("norm_out", a.hidden, 2), linear("proj_out", a.hidden, output, true)}));
}

// The autoencoder's parts, all of one number of groups and one activation.
struct Resnets {
  std::uint64_t groups = 0;
  std::string function;
  std::uint64_t layers = 0;  // in each block of the encoder; one more in the decoder's
};

Modules convolution3(std::string name, std::uint64_t input, std::uint64_t output) {
  return convolution(std::move(name), input, output, {3, 3}, true);
}

Modules resnet(const Resnets& r, std::uint64_t input, std::uint64_t output) {
  return join({group_norm("norm1", input), activation("nonlinearity1", r.function, input),
               convolution3("conv1", input, output), group_norm("norm2", output),
               activation("nonlinearity2", r.function, output), convolution3("conv2", output, output),
               input == output ? Modules{} : convolution("conv_shortcut", input, output, {1, 1}, true)});
}

// One head as wide as the pixel.
Modules pixel_attention(std::uint64_t channels) {
  return join({group_norm("group_norm", channels), linear("to_q", channels, channels, true),
               linear("to_k", channels, channels, true), linear("to_v", channels, channels, true),
               attention("attention", {.heads = 1, .kv_heads = 1, .head_size = channels}),
               linear("to_out.0", channels, channels, true)});
}

struct Level {
  std::uint64_t input = 0;
  std::uint64_t output = 0;
  std::uint64_t layers = 0;
  bool attends = false;
  std::string_view sampler;  // what changes the resolution afterwards; empty: nothing
};

Modules level(const Resnets& r, const Level& l) {
  Modules modules = below("resnets.0", resnet(r, l.input, l.output));
  const auto add = [&](Modules more) { modules.insert(modules.end(), more.begin(), more.end()); };
  const Modules equal = resnet(r, l.output, l.output);
  for (std::uint64_t i = 1; i < l.layers; ++i) add(below(fmt::format("resnets.{}", i), equal));
  if (l.attends) add(repeated("attentions", l.layers, pixel_attention(l.output)));
  if (!l.sampler.empty()) add(below(l.sampler, convolution3("0.conv", l.output, l.output)));
  return modules;
}

Modules middle(const Resnets& r, std::uint64_t channels, bool attends) {
  return below("mid_block", join({repeated("resnets", 2, resnet(r, channels, channels)),
                                  attends ? below("attentions.0", pixel_attention(channels)) : Modules{}}));
}

Modules end(const Resnets& r, std::uint64_t channels, std::uint64_t output) {
  return join({group_norm("conv_norm_out", channels), activation("conv_act", r.function, channels),
               convolution3("conv_out", channels, output)});
}

// Whether each block of the list attends; one type for each of the widths.
std::vector<bool> read_block_types(const ModelConfig& config, const char* attribute, const std::string& plain,
                                   std::size_t blocks) {
  const auto types = config.texts(attribute).value_or(std::vector<std::string>{plain});
  if (types.size() != blocks) {
    config.fail(attribute,
                fmt::format("expected {} types, one for each of block_out_channels, found {}", blocks, types.size()));
  }
  std::vector<bool> attends;
  for (const std::string& type : types) {
    attends.push_back(type == "Attn" + plain);
    if (type != plain && !attends.back()) {
      config.fail(attribute, fmt::format(R"(expected "{}" or "Attn{}", found "{}")", plain, plain, type));
    }
  }
  return attends;
}

std::vector<std::uint64_t> read_widths(const ModelConfig& config, std::uint64_t groups) {
  const auto widths = config.counts("block_out_channels").value_or(std::vector<std::uint64_t>{64});
  if (widths.empty()) config.fail("block_out_channels", "expected at least one width");
  for (const std::uint64_t width : widths) {
    if (width > 0 && width % groups == 0) continue;
    config.fail("block_out_channels",
                fmt::format("expected multiples of norm_num_groups, {}, found {}", groups, width));
  }
  return widths;
}

// The variational autoencoder of latent diffusion (diffusers' autoencoder_kl.py and vae.py).
void autoencoder_kl(ModelConfig& config, ModelBuilder& model) {
  Resnets r{config.size("norm_num_groups", 32), config.text("act_fn", "silu"), config.listed("layers_per_block", 1)};
  const std::vector<std::uint64_t> widths = read_widths(config, r.groups);
  const std::size_t last = widths.size() - 1;
  const auto down = read_block_types(config, "down_block_types", "DownEncoderBlock2D", widths.size());
  const auto up = read_block_types(config, "up_block_types", "UpDecoderBlock2D", widths.size());
  if (r.layers * widths.size() > ModelConfig::kMostListed) {
    config.fail("layers_per_block", fmt::format("expected at most {} layers in all blocks", ModelConfig::kMostListed));
  }
  const std::uint64_t latent = config.size("latent_channels", 4);
  const bool attends = config.flag("mid_block_add_attention", true);

  model.describe({.hidden = widths[last], .layers = widths.size()});
  model.add(convolution3("encoder.conv_in", config.size("in_channels", 3), widths[0]));
  for (std::size_t i = 0; i <= last; ++i) {
    model.add(below(fmt::format("encoder.down_blocks.{}", i), level(r, {widths[i == 0 ? 0 : i - 1], widths[i], r.layers,
                                                                        down[i], i == last ? "" : "downsamplers"})));
  }
  model.add(below("encoder", join({middle(r, widths[last], attends), end(r, widths[last], 2 * latent)})));

  model.add(below("decoder", join({convolution3("conv_in", latent, widths[last]), middle(r, widths[last], attends)})));
  for (std::size_t i = 0; i <= last; ++i) {
    model.add(
        below(fmt::format("decoder.up_blocks.{}", i), level(r, {widths[i == 0 ? last : last - i + 1], widths[last - i],
                                                                r.layers + 1, up[i], i == last ? "" : "upsamplers"})));
  }
  model.add(below("decoder", end(r, widths[0], config.size("out_channels", 3))));
  if (config.flag("use_quant_conv", true)) model.add(convolution("quant_conv", 2 * latent, 2 * latent, {1, 1}, true));
  if (config.flag("use_post_quant_conv", true)) model.add(convolution("post_quant_conv", latent, latent, {1, 1}, true));
}

constexpr PipelineMember kSd3Members[] = {
    {"transformer", "SD3Transformer2DModel", "", ModelBuilder::Part::main},
    {"text_encoder", "clip_text_model", "TextModelWithProjection", ModelBuilder::Part::frozen_tower},
    {"text_encoder_2", "clip_text_model", "TextModelWithProjection", ModelBuilder::Part::frozen_tower},
    {"text_encoder_3", "t5", "EncoderModel", ModelBuilder::Part::frozen_tower},
    {"vae", "AutoencoderKL", "", ModelBuilder::Part::frozen_tower},
};

// What is trained when Stable Diffusion 3 is: the transformer, beside towers that only prepare its input (diffusers'
// pipeline_stable_diffusion_3.py).
void stable_diffusion_3(ModelConfig& config, ModelBuilder& model) {
  for (const PipelineMember& member : kSd3Members) {
    if (member.part != ModelBuilder::Part::main && !config.has(member.name)) continue;
    ModelConfig part = config.nested(member.name, member.head);
    if (part.family().model_type != member.model_type) {
      config.fail(member.name, fmt::format("expected a {}, found a {}", member.model_type, part.family().model_type));
    }
    model.nested(std::string(member.name), std::move(part), member.part);
  }
}

}  // namespace

std::span<const PipelineMember> pipeline_members(const Family& family) {
  if (family.build == stable_diffusion_3) return kSd3Members;
  return {};
}

std::span<const Family> diffusion_families() {
  static const Family families[] = {
      {"DiT", "DiT", kWhole, {}, dit},
      {"SD3Transformer2DModel", "SD3Transformer2DModel", kWhole, kSd3Aliases, sd3_transformer},
      {"AutoencoderKL", "AutoencoderKL", kWhole, {}, autoencoder_kl},
      {"StableDiffusion3Pipeline", "StableDiffusion3Pipeline", kWhole, {}, stable_diffusion_3},
  };
  return families;
}

}  // namespace shardplan
