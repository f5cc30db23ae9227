#include "planner/families/megatron.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {
namespace {

using Latent = MegatronSizes::Latent;
using Experts = MegatronSizes::Experts;

constexpr const char* kWordEmbeddings = "embedding.word_embeddings";

// What a block is made of besides its norms.
enum class Mixer : std::uint8_t { none, attention, latent, mamba };
enum class Feed : std::uint8_t { none, mlp, experts };
struct BlockKind {
  Mixer mixer = Mixer::none;
  Feed feed = Feed::none;
  bool cross = false;  // attention to the encoder between them
  bool operator==(const BlockKind&) const = default;
};

Modules norm(const MegatronSizes& s, std::string name, std::uint64_t width) {
  return s.rms_norm ? rms_norm(std::move(name), width) : layer_norm(std::move(name), width);
}

// The norm that a module of Transformer Engine has inside it.
Modules norm_inside(const MegatronSizes& s, std::string name, std::uint64_t width) {
  Modules modules = norm(s, std::move(name), width);
  for (Tensor& tensor : modules[0].tensors) tensor.name = "layer_norm_" + tensor.name;
  return modules;
}

// The norm before a block's part: a module of its own, unless it is inside the part.
Modules norm_before(const MegatronSizes& s, const char* name, bool inside) {
  return inside ? Modules{} : norm(s, name, s.hidden);
}

Modules self_attention(const MegatronSizes& s) {
  const std::uint64_t queries = checked_multiply(s.heads, s.kv_channels);
  const std::uint64_t keys = checked_multiply(s.query_groups, s.kv_channels);
  const std::uint64_t projected =
      checked_add(checked_multiply(s.output_gate ? 2 : 1, queries), checked_multiply(2, keys));
  const bool rotary = s.positions == MegatronPositions::rotary;
  return join(
      {norm_before(s, "input_layernorm", s.transformer_engine),
       below("self_attention",
             join({attention(
                       "core_attention",
                       {.heads = s.heads, .kv_heads = s.query_groups, .head_size = s.kv_channels, .rotary = rotary}),
                   linear("linear_proj", queries, s.hidden, s.linear_bias),
                   s.transformer_engine ? norm_inside(s, "linear_qkv", s.hidden) : Modules{},
                   linear("linear_qkv", s.hidden, projected, s.linear_bias || s.qkv_bias),
                   s.qk_norm ? norm(s, "q_layernorm", s.kv_channels) : Modules{},
                   s.qk_norm ? norm(s, "k_layernorm", s.kv_channels) : Modules{}}))});
}

// A projection up from a rank with, where queries and keys are normed, the norm of the rank.
Modules up_projection(const MegatronSizes& s, const char* name, std::uint64_t rank, std::uint64_t output) {
  const bool inside = s.qk_norm && s.transformer_engine;
  return join({inside ? norm_inside(s, name, rank) : Modules{}, linear(name, rank, output, false)});
}

// multi_latent_attention.py: no projection to or from a rank has a bias.
Modules latent_attention(const MegatronSizes& s, const Latent& latent) {
  const std::uint64_t head = checked_add(latent.head, latent.rotary);
  const std::uint64_t queries = checked_multiply(s.heads, head);
  const std::uint64_t values = checked_multiply(s.heads, latent.value);
  const Modules query = latent.query_rank == 0
                            ? linear("linear_q_proj", s.hidden, queries, false)
                            : join({linear("linear_q_down_proj", s.hidden, latent.query_rank, false),
                                    up_projection(s, "linear_q_up_proj", latent.query_rank, queries)});
  const bool norms = s.qk_norm && !s.transformer_engine;
  return join({norm(s, "input_layernorm", s.hidden),
               below("self_attention",
                     join({attention("core_attention", {.heads = s.heads,
                                                        .kv_heads = s.heads,
                                                        .head_size = head,
                                                        .rotary = true,
                                                        .value_size = latent.value}),
                           linear("linear_proj", values, s.hidden, s.linear_bias), query,
                           linear("linear_kv_down_proj", s.hidden, checked_add(latent.key_rank, latent.rotary), false),
                           up_projection(s, "linear_kv_up_proj", latent.key_rank,
                                         checked_multiply(s.heads, checked_add(latent.head, latent.value))),
                           norms && latent.query_rank > 0 ? norm(s, "q_layernorm", latent.query_rank) : Modules{},
                           norms ? norm(s, "kv_layernorm", latent.key_rank) : Modules{}}))});
}

// T5's decoder: queries of the block, keys and values of the encoder's output.
Modules cross_attention(const MegatronSizes& s) {
  const std::uint64_t queries = checked_multiply(s.heads, s.kv_channels);
  return join(
      {norm(s, "pre_cross_attn_layernorm", s.hidden),
       below("cross_attention",
             join({attention("core_attention", {.heads = s.heads, .kv_heads = s.heads, .head_size = s.kv_channels}),
                   linear("linear_proj", queries, s.hidden, s.linear_bias),
                   linear("linear_q", s.hidden, queries, s.linear_bias),
                   linear("linear_kv", s.hidden, checked_multiply(2, queries), s.linear_bias)}))});
}

// mamba_mixer.py: a convolution over 4 positions; z, x, B, C and dt come from one projection.
Modules mamba(const MegatronSizes& s) {
  constexpr std::uint64_t kConvolution = 4;
  constexpr std::uint64_t kExpand = 2;
  const std::uint64_t heads = s.mamba.heads > 0 ? s.mamba.heads : kExpand * s.hidden / s.mamba.head;
  const std::uint64_t inner = checked_multiply(heads, s.mamba.head);
  const std::uint64_t states = checked_multiply(2, checked_multiply(s.mamba.groups, s.mamba.state));
  const std::uint64_t channels = checked_add(inner, states);
  return below("mixer", join({parameter("conv1d_weight", {channels, 1, kConvolution}),
                              parameter("conv1d_bias", {channels}), parameter("dt_bias", {heads}),
                              parameter("A_log", {heads}), parameter("D", {heads}), norm_inside(s, "in_proj", s.hidden),
                              linear("in_proj", s.hidden, checked_add(checked_add(inner, channels), heads), false),
                              scan("scan", inner, s.mamba.state), rms_norm("norm", inner),
                              linear("out_proj", inner, s.hidden, false)}));
}

Modules activations(const MegatronSizes& s, const std::string& name, std::uint64_t width) {
  return join({activation(name, s.activation, width), s.gated ? multiply(name, width) : Modules{}});
}

std::uint64_t fc1_width(const MegatronSizes& s, std::uint64_t ffn) {
  return s.gated ? checked_multiply(2, ffn) : ffn;
}

Modules feed_forward(const MegatronSizes& s, std::uint64_t input, std::uint64_t ffn, bool norm_is_inside, bool bias) {
  return join({norm_is_inside ? norm_inside(s, "linear_fc1", input) : Modules{},
               linear("linear_fc1", input, fc1_width(s, ffn), bias), activations(s, "activation_func", ffn),
               linear("linear_fc2", ffn, input, bias)});
}

// One linear module of every expert: weight0, weight1, ... and their biases.
Modules grouped_linear(const char* name, std::uint64_t experts, std::uint64_t input, std::uint64_t output, bool bias) {
  Modules all;
  for (std::uint64_t i = 0; i < experts; ++i) {
    Modules one = linear(name, input, output, bias);
    for (Tensor& tensor : one[0].tensors) tensor.name += std::to_string(i);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

Modules routed_experts(const MegatronSizes& s, const Experts& e) {
  const std::uint64_t input = e.latent > 0 ? e.latent : s.hidden;
  const Routing routing{.experts = e.experts, .chosen = e.chosen};
  if (!e.grouped) {
    return routed(repeated("local_experts", e.experts, feed_forward(s, input, e.ffn, false, s.linear_bias)), routing);
  }
  return routed(join({grouped_linear("linear_fc1", e.experts, input, fc1_width(s, e.ffn), s.linear_bias),
                      repeated("activation", e.experts, activations(s, "func", e.ffn)),
                      grouped_linear("linear_fc2", e.experts, e.ffn, input, s.linear_bias)}),
                routing);
}

// The shared expert never has biases (shared_experts.py).
Modules shared_expert(const MegatronSizes& s, const Experts& e) {
  if (e.shared_ffn == 0) return {};
  return below("shared_experts", join({e.shared_gate ? parameter("gate_weight", {1, s.hidden}) : Modules{},
                                       feed_forward(s, s.hidden, e.shared_ffn, false, false)}));
}

Modules mixture(const MegatronSizes& s, const Experts& e) {
  const bool latent = e.latent > 0;
  return join({norm(s, "pre_mlp_layernorm", s.hidden),
               below("mlp", join({router("router", s.hidden, e.experts, s.linear_bias),
                                  latent ? linear("fc1_latent_proj", s.hidden, e.latent, s.linear_bias) : Modules{},
                                  latent ? linear("fc2_latent_proj", e.latent, s.hidden, s.linear_bias) : Modules{},
                                  below("experts", routed_experts(s, e)), shared_expert(s, e)}))});
}

// Transformer Engine's modules keep their matrices in fp8: not the router, which is none of its.
Modules in_fp8(const MegatronSizes& s, Modules modules) {
  if (!s.fp8_matrices || !s.transformer_engine) return modules;
  for (Module& module : modules) {
    if (module.kind != ModuleKind::linear) continue;
    for (Tensor& tensor : module.tensors) {
      if (tensor.shape.size() == 2) tensor.dtype = DType::f8_e4m3;
    }
  }
  return modules;
}

Modules mixer_of(const MegatronSizes& s, Mixer mixer) {
  switch (mixer) {
    case Mixer::none:
      return {};
    case Mixer::attention:
      return self_attention(s);
    case Mixer::latent:
      SHARDPLAN_CHECK(s.latent.has_value(), "latent attention without its sizes");
      return latent_attention(s, *s.latent);
    case Mixer::mamba:
      return mamba(s);
  }
  return {};
}

Modules feed_of(const MegatronSizes& s, Feed feed) {
  if (feed == Feed::none) return {};
  if (feed == Feed::experts) {
    SHARDPLAN_CHECK(s.experts.has_value(), "experts without their sizes");
    return mixture(s, *s.experts);
  }
  return join({norm_before(s, "pre_mlp_layernorm", s.transformer_engine),
               below("mlp", feed_forward(s, s.hidden, s.ffn, s.transformer_engine, s.linear_bias))});
}

Modules block(const MegatronSizes& s, const BlockKind& kind) {
  return in_fp8(s, join({mixer_of(s, kind.mixer), kind.cross ? cross_attention(s) : Modules{}, feed_of(s, kind.feed)}));
}

BlockKind kind_of_letter(char letter) {
  switch (letter) {
    case 'M':
      return {.mixer = Mixer::mamba};
    case '*':
      return {.mixer = Mixer::attention};
    case '+':
      return {.mixer = Mixer::latent};
    case 'E':
      return {.feed = Feed::experts};
    default:
      SHARDPLAN_CHECK(letter == '-', "an unknown letter of a hybrid pattern");
      return {.feed = Feed::mlp};
  }
}

BlockKind kind_of_layer(const MegatronSizes& s, std::uint64_t layer) {
  if (s.kind == MegatronKind::hybrid) return kind_of_letter(s.pattern[layer]);
  const bool experts = s.experts && (s.experts->layers.empty() || s.experts->layers[layer]);
  return {.mixer = s.latent ? Mixer::latent : Mixer::attention,
          .feed = experts ? Feed::experts : Feed::mlp,
          .cross = s.kind == MegatronKind::t5};
}

class Builder {
 public:
  explicit Builder(const MegatronSizes& sizes) : s_(sizes) {}

  // Equal layers in a row are one run.
  template <typename KindOf>
  void blocks(const std::string& stack, std::uint64_t count, const KindOf& kind_of) {
    for (std::uint64_t first = 0, next = 0; first < count; first = next) {
      const BlockKind kind = kind_of(first);
      for (next = first + 1; next < count && kind_of(next) == kind;) ++next;
      model_.modules.push_back(
          {.name = stack, .numbered = true, .first_number = first, .count = next - first, .modules = block(s_, kind)});
      if (kind.feed != Feed::experts) continue;
      for (std::uint64_t layer = first; layer < next; ++layer) balancing(fmt::format("{}.{}", stack, layer));
    }
  }
  // router.py keeps the bias in fp32, whatever the parameters are in.
  void balancing(const std::string& block) {
    if (!s_.experts->balancing_bias) return;
    model_.catalog.buffers.push_back({.name = block + ".mlp.router.expert_bias",
                                      .shape = {s_.experts->experts},
                                      .dtype = DType::f32,
                                      .trainable = false});
  }
  void unit(std::string name, Modules modules) {
    model_.modules.push_back({.name = std::move(name), .modules = std::move(modules)});
  }
  void embedding_unit(std::uint64_t token_types) {
    unit("embedding",
         join({embedding(kWordEmbeddings, s_.vocabulary, s_.hidden),
               s_.positions == MegatronPositions::learned
                   ? embedding("embedding.position_embeddings", s_.max_positions, s_.hidden)
                   : Modules{},
               token_types > 0 ? embedding("embedding.tokentype_embeddings", token_types, s_.hidden) : Modules{}}));
  }
  // The weight is that of the word embedding unless they are untied; the bias is its own.
  Modules output(const char* name, bool bias) const {
    Modules modules = linear(name, s_.hidden, s_.vocabulary, bias);
    if (!s_.untied) modules[0].tensors[0].tied_to = std::string(kWordEmbeddings) + ".weight";
    return modules;
  }

  void gpt() {
    embedding_unit(0);
    blocks("decoder.layers", s_.layers, [&](std::uint64_t layer) { return kind_of_layer(s_, layer); });
    if (s_.prediction_layers > 0) predictions();
    const char* last = s_.kind == MegatronKind::hybrid ? "decoder.final_norm" : "decoder.final_layernorm";
    unit("head", join({norm(s_, last, s_.hidden), output("output_layer", false)}));
  }
  void bert() {
    embedding_unit(s_.binary_head ? 2 : 0);
    blocks("encoder.layers", s_.layers, [&](std::uint64_t layer) { return kind_of_layer(s_, layer); });
    unit("head",
         join({norm(s_, "encoder.final_layernorm", s_.hidden), linear("lm_head.dense", s_.hidden, s_.hidden, true),
               layer_norm("lm_head.layer_norm", s_.hidden), output("output_layer", true),
               s_.binary_head ? linear("binary_head", s_.hidden, 2, true) : Modules{},
               s_.binary_head ? linear("pooler.dense", s_.hidden, s_.hidden, true) : Modules{}}));
  }
  void t5() {
    embedding_unit(0);
    if (s_.positions == MegatronPositions::relative) {
      unit("relative",
           join({embedding("encoder_relative_pos_emb.relative_attention_bias", s_.relative_buckets, s_.heads),
                 embedding("decoder_relative_pos_emb.relative_attention_bias", s_.relative_buckets, s_.heads)}));
    }
    blocks("encoder.layers", s_.encoder_layers,
           [](std::uint64_t) { return BlockKind{.mixer = Mixer::attention, .feed = Feed::mlp}; });
    unit("encoder.head", norm(s_, "encoder.final_layernorm", s_.hidden));
    blocks("decoder.layers", s_.layers, [&](std::uint64_t layer) { return kind_of_layer(s_, layer); });
    // T5LMHead: a bias where the weight is shared.
    unit("head", join({norm(s_, "decoder.final_layernorm", s_.hidden), output("lm_head.output_layer", !s_.untied)}));
  }

  Model finish(std::string name) {
    model_.architecture = {.vocabulary = s_.vocabulary,
                           .hidden = s_.hidden,
                           .intermediate = s_.ffn,
                           .layers = s_.layers,
                           .heads = s_.heads,
                           .kv_heads = s_.query_groups,
                           .head_size = s_.kv_channels,
                           .max_positions = s_.max_positions};
    std::vector<Tensor> buffers = std::move(model_.catalog.buffers);
    model_.catalog =
        make_catalog(std::move(name), fmt::format("megatron-{}", shardplan::name(s_.kind)), model_.modules);
    model_.catalog.buffers = std::move(buffers);
    model_.catalog.active_parameters = active_parameters(model_.modules);
    return std::move(model_);
  }

 private:
  // multi_token_prediction.py: each depth has a block like the last layer of the decoder, or those of its own pattern.
  void predictions() {
    Modules inner;
    bool routed_inside = false;
    const std::string block_name = "mtp_model_layer";
    if (s_.kind == MegatronKind::hybrid) {
      for (std::size_t i = 0; i < s_.prediction_pattern.size(); ++i) {
        const BlockKind kind = kind_of_letter(s_.prediction_pattern[i]);
        inner = join({inner, below(fmt::format("{}.layers.{}", block_name, i), block(s_, kind))});
        routed_inside = routed_inside || kind.feed == Feed::experts;
      }
    } else {
      const BlockKind kind = kind_of_layer(s_, s_.layers - 1);
      inner = below(block_name, block(s_, kind));
      routed_inside = kind.feed == Feed::experts;
    }
    const Modules projection = in_fp8(s_, linear("eh_proj", checked_multiply(2, s_.hidden), s_.hidden, false));
    model_.modules.push_back({.name = "mtp.layers",
                              .numbered = true,
                              .count = s_.prediction_layers,
                              .modules = join({norm(s_, "enorm", s_.hidden), norm(s_, "hnorm", s_.hidden), projection,
                                               inner, norm(s_, "final_layernorm", s_.hidden)})});
    // The last stage of a pipeline has a word embedding of its own for them (gpt_model.py, mtp_process).
    unit("mtp.embedding", tied(embedding("mtp.embedding.word_embeddings", s_.vocabulary, s_.hidden),
                               std::string(kWordEmbeddings) + ".weight"));
    if (!routed_inside) return;
    for (std::uint64_t depth = 0; depth < s_.prediction_layers; ++depth) {
      if (s_.kind != MegatronKind::hybrid) balancing(fmt::format("mtp.layers.{}.{}", depth, block_name));
    }
  }

  const MegatronSizes& s_;
  Model model_;
};

}  // namespace

std::string_view name(MegatronKind kind) {
  switch (kind) {
    case MegatronKind::gpt:
      return "gpt";
    case MegatronKind::bert:
      return "bert";
    case MegatronKind::t5:
      return "t5";
    case MegatronKind::hybrid:
      return "hybrid";
  }
  SHARDPLAN_CHECK(false, "an unknown kind of model");
  return {};
}

Model megatron_model(std::string name, const MegatronSizes& sizes) {
  Builder builder(sizes);
  switch (sizes.kind) {
    case MegatronKind::gpt:
    case MegatronKind::hybrid:
      builder.gpt();
      break;
    case MegatronKind::bert:
      builder.bert();
      break;
    case MegatronKind::t5:
      builder.t5();
      break;
  }
  return builder.finish(std::move(name));
}

}  // namespace shardplan
