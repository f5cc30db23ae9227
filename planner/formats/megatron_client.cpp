#include "planner/formats/megatron_client.h"

#include <string>

namespace shardplan {
namespace {

using Arguments = MegatronArguments;

bool lists(const std::string& words, std::string_view word) {
  std::size_t at = words.find(word);
  for (; at != std::string::npos; at = words.find(word, at + 1)) {
    const auto inside = [&](std::size_t i) {
      return i < words.size() && (words[i] == '_' || (words[i] >= 'a' && words[i] <= 'z'));
    };
    if ((at == 0 || !inside(at - 1)) && !inside(at + word.size())) return true;
  }
  return false;
}

MegatronAttention read_attention(Arguments& a, const MegatronSizes& sizes) {
  if (!sizes.transformer_engine) {
    a.given("attention-backend");
    return MegatronAttention::local;
  }
  const std::string word = a.word_or("attention-backend", "auto", {"auto", "flash", "fused", "unfused", "local"});
  return word == "flash"     ? MegatronAttention::flash
         : word == "fused"   ? MegatronAttention::fused
         : word == "unfused" ? MegatronAttention::unfused
         : word == "local"   ? MegatronAttention::local
                             : MegatronAttention::automatic;
}

void read_fusions(Arguments& a, const MegatronSizes& sizes, MegatronClient& m) {
  const bool no_gelu = a.flag("no-bias-gelu-fusion");
  const bool no_swiglu = a.flag("no-bias-swiglu-fusion");
  // validate_args: fusion is of gelu with a bias, or of swiglu and quick-geglu.
  m.bias_activation_fusion = sizes.gated ? !no_swiglu : !no_gelu && sizes.linear_bias && sizes.activation == "gelu";
  m.rope_fusion = !a.flag("no-rope-fusion");
  m.masked_softmax_fusion = !a.flag("no-masked-softmax-fusion");
  m.gradient_accumulation_fusion = !a.flag("no-gradient-accumulation-fusion");
  if (!a.flag("cross-entropy-loss-fusion")) {
    m.cross_entropy = MegatronCrossEntropy::unfused;
    a.given("cross-entropy-fusion-impl");
  } else {
    m.cross_entropy = a.word_or("cross-entropy-fusion-impl", "native", {"native", "te", "linear"}) == "te"
                          ? MegatronCrossEntropy::te
                          : MegatronCrossEntropy::native;
  }
}

ContextExchange read_exchange(Arguments& a) {
  const std::string words = a.text("cp-comm-type").value_or("p2p");
  if (lists(words, "allgather") || lists(words, "all_gather")) return ContextExchange::all_gather;
  // a2a+p2p exchanges heads inside a node first.
  return words.find("a2a") != std::string::npos ? ContextExchange::all_to_all : ContextExchange::ring;
}

void read_experts(Arguments& a, const MegatronSizes& sizes, ClientSetup& client) {
  MegatronClient& m = client.megatron;
  const std::string dispatcher = a.word_or("moe-token-dispatcher-type", "allgather", {"allgather", "alltoall", "flex"});
  m.token_dispatcher = dispatcher == "allgather" ? TokenDispatcher::all_gather : TokenDispatcher::all_to_all;
  m.grouped_gemm = sizes.experts && sizes.experts->grouped;
  m.router_fp32 = a.text("moe-router-dtype").value_or("") == "fp32";
  client.expert_load.capacity_factor = a.positive_real("moe-expert-capacity-factor");
  client.expert_load.padded = a.flag("moe-pad-expert-input-to-capacity");
  if (client.expert_load.padded && !client.expert_load.capacity_factor) {  // transformer_config.py
    a.fail_expected("moe-pad-expert-input-to-capacity", "moe-expert-capacity-factor beside it");
  }
}

void read_fp8(Arguments& a, MegatronClient& m) {
  if (a.word_or("fp8-format", "", {"e4m3", "hybrid"}).empty()) return;
  const std::string recipe =
      a.word_or("fp8-recipe", "delayed", {"delayed", "tensorwise", "blockwise", "mxfp8", "custom"});
  m.fp8 = recipe == "tensorwise"  ? Fp8Recipe::tensorwise
          : recipe == "blockwise" ? Fp8Recipe::blockwise
          : recipe == "mxfp8"     ? Fp8Recipe::mxfp8
                                  : Fp8Recipe::delayed;
  m.fp8_param_gather = a.flag("fp8-param-gather");
}

void read_recompute(Arguments& a, ClientSetup& client) {
  MegatronClient& m = client.megatron;
  const std::string word =
      a.word_or("recompute-granularity", a.flag("recompute-activations") ? "selective" : "", {"full", "selective"});
  m.recompute_method = a.word_or("recompute-method", "uniform", {"uniform", "block"}) == "block"
                           ? RecomputeMethod::block
                           : RecomputeMethod::uniform;
  const bool block = m.recompute_method == RecomputeMethod::block;
  m.recompute_num_layers = a.count("recompute-num-layers").value_or(block ? 0 : 1);
  if (word == "full") client.recompute = RecomputeKind::full;
  if (word != "selective") return;
  client.recompute = RecomputeKind::selective;
  const std::string modules = a.text("recompute-modules").value_or("core_attn");
  m.recompute_modules = {.core_attention = lists(modules, "core_attn"),
                         .mlp = lists(modules, "mlp"),
                         .moe = lists(modules, "moe"),
                         .shared_experts = lists(modules, "shared_experts"),
                         .layernorm = lists(modules, "layernorm"),
                         .moe_activation = lists(modules, "moe_act"),
                         .mla_up_projection = lists(modules, "mla_up_proj")};
}

double rate(Arguments& a, std::string_view name) {
  return a.fraction_or(name, 0.1);
}

bool nondeterministic_allowed(const std::optional<JsonView>& environment) {
  if (!environment) return true;
  const JsonView value = (*environment)["NVTE_ALLOW_NONDETERMINISTIC_ALGO"];
  if (!value.exists() || value.is_null()) return true;
  return value.is_string() ? value.as_string() != "0" : value.as_count() != 0;
}

}  // namespace

ClientSetup read_megatron_client(MegatronArguments& a, const std::optional<JsonView>& environment,
                                 const MegatronSizes& sizes) {
  ClientSetup client;
  client.profile = Profile::megatron;
  MegatronClient& m = client.megatron;
  m.transformer_engine = sizes.transformer_engine;
  m.attention = read_attention(a, sizes);
  m.nondeterministic_allowed = nondeterministic_allowed(environment);
  m.deterministic_mode = a.flag("deterministic-mode");
  m.hidden_dropout = rate(a, "hidden-dropout");
  m.attention_dropout = rate(a, "attention-dropout");
  read_fusions(a, sizes, m);
  m.fp32_residual_connection = a.flag("fp32-residual-connection");
  m.activation_func_fp8_input_store = a.flag("activation-func-fp8-input-store");
  m.create_attention_mask = !a.flag("no-create-attention-mask-in-dataloader");
  m.padding_mask = sizes.kind == MegatronKind::bert || sizes.kind == MegatronKind::t5;
  m.context_exchange = read_exchange(a);
  m.tp_comm_overlap = a.flag("tp-comm-overlap");
  read_experts(a, sizes, client);
  read_fp8(a, m);
  read_recompute(a, client);
  client.micro_batch = a.positive_or("micro-batch-size", 1);
  client.sequence = a.positive("seq-length").value_or(a.positive_or("encoder-seq-length", 0));
  m.decoder_sequence = a.count("decoder-seq-length").value_or(0);
  return client;
}

}  // namespace shardplan
