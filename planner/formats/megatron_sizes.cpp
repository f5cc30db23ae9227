#include "planner/formats/megatron_sizes.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace shardplan {
namespace {

using Arguments = MegatronArguments;
using Notes = std::vector<std::string>;

constexpr std::uint64_t kMostLayers = 65'536;
constexpr std::uint64_t kMostKindsOfLayers = 4'096;
constexpr std::uint64_t kMostDepths = 64;
constexpr std::uint64_t kMostExperts = 65'536;
constexpr std::uint64_t kMostModules = 262'144;  // listed: experts x runs of layers that have them

MegatronKind kind_of(Arguments& a, const std::string& script) {
  for (const auto& [word, kind] : {std::pair{"bert", MegatronKind::bert},
                                   {"t5", MegatronKind::t5},
                                   {"gpt", MegatronKind::gpt},
                                   {"hybrid", MegatronKind::hybrid},
                                   {"mamba", MegatronKind::hybrid}}) {
    if (script.find(word) != std::string::npos) return kind;
  }
  if (a.given("hybrid-layer-pattern") || a.given("hybrid-override-pattern")) return MegatronKind::hybrid;
  for (const char* name : {"encoder-num-layers", "decoder-num-layers", "decoder-seq-length"}) {
    if (a.given(name)) return MegatronKind::t5;
  }
  for (const char* name : {"bert-no-binary-head", "bert-embedder-type", "bert-load"}) {
    if (a.given(name)) return MegatronKind::bert;
  }
  // Only pretrain_bert.py has a specification of that name.
  const bool local = a.text("spec") == "local" || a.text("spec") == "[local]";
  return local ? MegatronKind::bert : MegatronKind::gpt;
}

// training/config/training_config.py, TokenizerConfig; NullTokenizer counts as it is told.
std::uint64_t read_vocabulary(Arguments& a, MegatronKind kind, Notes& notes) {
  a.given("tokenizer-type");
  const std::uint64_t extra = a.count("vocab-extra-ids", 1'000'000).value_or(0);
  if (const auto padded = a.positive("padded-vocab-size")) {
    a.given("vocab-size");
    return *padded;
  }
  if (const auto size = a.positive("vocab-size")) {
    if (*size + extra > Arguments::kLargestSize) a.fail_expected("vocab-size", "a smaller number");
    return *size + extra;
  }
  const bool word_pieces = kind == MegatronKind::bert || kind == MegatronKind::t5;
  const std::string tokenizer =
      a.text("tokenizer-type").value_or(word_pieces ? "BertWordPieceLowerCase" : "GPT2BPETokenizer");
  const std::uint64_t size = tokenizer == "BertWordPieceLowerCase" ? 30'522
                             : tokenizer == "BertWordPieceCase"    ? 28'996
                                                                   : 50'257;
  notes.push_back(fmt::format("vocab-size is not given: {} taken, {}", size,
                              tokenizer == "GPT2BPETokenizer" ? "that of GPT-2"
                              : size == 50'257                ? fmt::format("though {} decides it", tokenizer)
                                                              : "that of BERT's vocabulary"));
  return size + extra;
}

void read_norm_and_activation(Arguments& a, MegatronSizes& s) {
  s.rms_norm = a.word_or("normalization", "LayerNorm", {"LayerNorm", "RMSNorm"}) == "RMSNorm";
  const bool swiglu = a.flag("swiglu");
  const bool quick = a.flag("quick-geglu");
  const bool squared = a.flag("squared-relu");
  if (swiglu && squared) a.fail("squared-relu", "contradicts swiglu");
  s.gated = swiglu || quick;
  s.activation = swiglu ? "silu" : quick ? "quick_gelu" : squared ? "relu2" : "gelu";
  s.linear_bias = !a.flag("disable-bias-linear");
  s.qkv_bias = a.flag("add-qkv-bias");
  s.qk_norm = a.flag("qk-layernorm");
  s.untied = a.flag("untie-embeddings-and-output-weights");
  s.output_gate = a.flag("attention-output-gate");
}

void read_positions(Arguments& a, MegatronSizes& s) {
  const std::string type = a.word_or("position-embedding-type", "learned_absolute",
                                     {"learned_absolute", "rope", "yarn", "mrope", "relative", "none"});
  s.positions = type == "learned_absolute" ? MegatronPositions::learned
                : type == "relative"       ? MegatronPositions::relative
                : type == "none"           ? MegatronPositions::none
                                           : MegatronPositions::rotary;
  if (a.flag("use-rotary-position-embeddings")) s.positions = MegatronPositions::rotary;
  s.relative_buckets = a.positive_or("relative-attention-num-buckets", 32);
}

void read_layers(Arguments& a, MegatronSizes& s) {
  if (s.kind == MegatronKind::hybrid) return;
  const auto layers = a.positive("num-layers", kMostLayers);
  if (s.kind != MegatronKind::t5) {
    s.layers = layers ? *layers : a.required("num-layers", kMostLayers);
    return;
  }
  const auto encoder = a.positive("encoder-num-layers", kMostLayers);
  s.encoder_layers = layers ? *layers : encoder ? *encoder : a.required("encoder-num-layers", kMostLayers);
  s.layers = a.positive_or("decoder-num-layers", s.encoder_layers, kMostLayers);
}

// validate_args: int((4 * hidden * 2 / 3) / 64) * 64.
std::uint64_t default_ffn(const MegatronSizes& s, bool swiglu) {
  return swiglu ? 8 * s.hidden / 3 / 64 * 64 : 4 * s.hidden;
}

void read_attention(Arguments& a, MegatronSizes& s) {
  s.heads = a.required("num-attention-heads");
  s.query_groups = s.heads;
  if (a.flag("group-query-attention")) {
    s.query_groups = a.positive_or("num-query-groups", 1);
  } else {
    a.given("num-query-groups");
  }
  if (s.heads % s.query_groups != 0) {
    a.fail_expected("num-query-groups", fmt::format("a divisor of the {} attention heads", s.heads));
  }
  const auto channels = a.positive("kv-channels");
  if (!channels && s.hidden % s.heads != 0) {
    a.fail_expected("num-attention-heads",
                    fmt::format("a divisor of hidden-size {} where kv-channels is absent", s.hidden));
  }
  s.kv_channels = channels.value_or(s.hidden / s.heads);
  const bool latent = a.flag("multi-latent-attention") || s.pattern.find('+') != std::string::npos ||
                      s.prediction_pattern.find('+') != std::string::npos;
  MegatronSizes::Latent sizes;
  sizes.query_rank = a.count("q-lora-rank").value_or(0);
  sizes.key_rank = a.positive_or("kv-lora-rank", sizes.key_rank);
  sizes.head = a.positive_or("qk-head-dim", sizes.head);
  sizes.rotary = a.positive_or("qk-pos-emb-head-dim", sizes.rotary);
  sizes.value = a.positive_or("v-head-dim", sizes.value);
  if (latent) s.latent = sizes;
}

void read_layers_with_experts(Arguments& a, MegatronSizes& s, MegatronSizes::Experts& e) {
  constexpr const char* kName = "moe-layer-freq";
  if (s.kind == MegatronKind::hybrid) {
    a.given(kName);
    return;
  }
  std::vector<bool> layers;
  if (const auto pattern = a.pattern(kName, kMostLayers)) {
    layers = *pattern;
    if (layers.size() != s.layers) {
      a.fail(kName, fmt::format("expected an entry for each of the {} layers, found {}", s.layers, layers.size()));
    }
  } else {
    const std::uint64_t step = a.positive_or(kName, 1);
    for (std::uint64_t i = 0; i < s.layers; ++i) layers.push_back(i % step == 0);
  }
  std::uint64_t runs = 1;
  for (std::size_t i = 1; i < layers.size(); ++i) runs += layers[i] != layers[i - 1] ? 1U : 0U;
  if (runs > kMostKindsOfLayers || runs * e.experts > kMostModules) {
    a.fail("num-experts", fmt::format("{} experts in {} runs of layers are more than can be listed", e.experts, runs));
  }
  if (std::find(layers.begin(), layers.end(), false) != layers.end()) e.layers = std::move(layers);
}

void read_experts(Arguments& a, MegatronSizes& s) {
  const std::uint64_t experts = a.count("num-experts", kMostExperts).value_or(0);
  MegatronSizes::Experts e;
  e.experts = experts;
  e.chosen = a.positive_or("moe-router-topk", 2);
  e.ffn = a.positive_or("moe-ffn-hidden-size", s.ffn);
  e.shared_ffn = a.count("moe-shared-expert-intermediate-size").value_or(0);
  e.shared_gate = a.flag("moe-shared-expert-gate");
  e.latent = a.count("moe-latent-size").value_or(0);
  e.grouped = (a.flag("moe-grouped-gemm") || s.kind == MegatronKind::hybrid) && s.transformer_engine;
  e.balancing_bias = a.flag("moe-router-enable-expert-bias");
  if (experts == 0) {
    a.given("moe-layer-freq");
    return;
  }
  if (e.chosen > experts) a.fail_expected("moe-router-topk", fmt::format("at most the {} experts", experts));
  if (e.shared_ffn > 0 && s.linear_bias) {
    a.fail("moe-shared-expert-intermediate-size", "needs disable-bias-linear: shared experts have no biases");
  }
  read_layers_with_experts(a, s, e);
  s.experts = std::move(e);
}

// Parts of a text between separators.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

// core/models/hybrid/hybrid_layer_allocation.py: MAIN/DEPTH/DEPTH..., the stages of a pipeline apart by |.
void read_pattern(Arguments& a, MegatronSizes& s, Notes& notes) {
  const char* name = a.given("hybrid-layer-pattern") ? "hybrid-layer-pattern" : "hybrid-override-pattern";
  const std::vector<std::string> parts = split(a.text(name).value_or(""), '/');
  for (const char letter : parts[0]) {
    if (letter != '|') s.pattern += letter;
  }
  if (s.pattern.size() < parts[0].size()) {
    notes.push_back(fmt::format("{}: the stages that | cuts are not read, layers are split evenly", name));
  }
  s.prediction_layers = parts.size() - 1;
  if (parts.size() > 1) s.prediction_pattern = parts[1];
  if (s.pattern.empty() || std::find(parts.begin() + 1, parts.end(), "") != parts.end()) {
    a.fail(name, "expected a letter for each layer");
  }
  if (std::any_of(parts.begin() + 1, parts.end(), [&](const auto& part) { return part != s.prediction_pattern; })) {
    a.fail(name, "expected the same layers for each depth of prediction");
  }
  for (const char letter : s.pattern + s.prediction_pattern) {
    if (std::string_view("M*+-E").find(letter) != std::string_view::npos) continue;
    a.fail(name, fmt::format("expected the letters M, *, +, - and E, found '{}'", letter));
  }
  if (s.pattern.size() > kMostKindsOfLayers || s.prediction_pattern.size() > kMostDepths ||
      s.prediction_layers > kMostDepths) {
    a.fail(name, fmt::format("expected at most {} layers, and {} of prediction", kMostKindsOfLayers, kMostDepths));
  }
  s.layers = s.pattern.size();
  a.given("num-layers");
  s.mamba.state = a.positive_or("mamba-state-dim", s.mamba.state);
  s.mamba.head = a.positive_or("mamba-head-dim", s.mamba.head);
  s.mamba.groups = a.positive_or("mamba-num-groups", s.mamba.groups);
  s.mamba.heads = a.count("mamba-num-heads").value_or(0);
}

void check_hybrid(Arguments& a, const MegatronSizes& s) {
  const std::string all = s.pattern + s.prediction_pattern;
  const auto layers = static_cast<std::uint64_t>(std::count(all.begin(), all.end(), 'E'));
  if (layers > 0 && !s.experts)
    a.fail("num-experts", "expected a positive integer: the pattern has layers with experts");
  if (layers > 0 && layers * s.experts->experts > kMostModules) {
    a.fail("num-experts",
           fmt::format("{} experts in {} layers are more than can be listed", s.experts->experts, layers));
  }
  if (s.mamba.heads == 0 && 2 * s.hidden % s.mamba.head != 0) {
    a.fail_expected("mamba-head-dim", fmt::format("a divisor of 2 x hidden-size {}", s.hidden));
  }
}

void read_predictions(Arguments& a, MegatronSizes& s) {
  const std::uint64_t depths = a.count("mtp-num-layers", kMostDepths).value_or(0);
  const bool repeated = a.flag("mtp-use-repeated-layer");
  if (s.kind == MegatronKind::gpt) s.prediction_layers = depths;
  if (repeated) s.prediction_layers = std::min<std::uint64_t>(s.prediction_layers, 1);
}

}  // namespace

MegatronSizes read_megatron_sizes(MegatronArguments& a, const std::string& script, Notes& notes) {
  MegatronSizes s;
  s.kind = kind_of(a, script);
  const std::string implementation =
      a.word_or("transformer-impl", "transformer_engine", {"local", "transformer_engine", "inference_optimized"});
  // pretrain_bert.py asks --spec alone.
  s.transformer_engine = s.kind == MegatronKind::bert ? a.text("spec").value_or("").find("local") == std::string::npos
                                                      : implementation != "local";
  a.given("spec");
  s.hidden = a.required("hidden-size");
  if (s.kind == MegatronKind::hybrid) read_pattern(a, s, notes);
  read_layers(a, s);
  read_norm_and_activation(a, s);
  read_positions(a, s);
  s.max_positions = a.required("max-position-embeddings");
  s.ffn = a.positive_or("ffn-hidden-size", default_ffn(s, a.flag("swiglu")));
  if (s.ffn == 0) a.fail_expected("hidden-size", "at least 24 where ffn-hidden-size is absent");
  read_attention(a, s);
  read_experts(a, s);
  read_predictions(a, s);
  if (s.kind == MegatronKind::hybrid) check_hybrid(a, s);
  s.binary_head = !a.flag("bert-no-binary-head");
  s.vocabulary = read_vocabulary(a, s.kind, notes);
  s.fp8_matrices = a.flag("fp8-param-gather") && a.given("fp8-format");
  return s;
}

}  // namespace shardplan
