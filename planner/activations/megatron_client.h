// What flags of Megatron-LM decide of a rank's activations, with Megatron's own defaults (training/arguments.py and
// core/transformer/transformer_config.py of d98e8a64; Transformer Engine 2.11 to 2.17).
#pragma once

#include <cstdint>
#include <optional>

namespace shardplan {

// --attention-backend. automatic: FlashAttention 2 where nondeterministic kernels are forbidden, else cuDNN's.
enum class MegatronAttention : std::uint8_t { automatic, flash, fused, unfused, local };

// --cross-entropy-loss-fusion and --cross-entropy-fusion-impl.
//   unfused  an fp32 copy of the logits, changed in place: 4 bytes per logit are kept, 6 at the peak
//   native   compiled functions, which do not write in place: 10 at the peak
//   te       Transformer Engine's, in place in the 16-bit logits: 2
enum class MegatronCrossEntropy : std::uint8_t { unfused, native, te };

// --cp-comm-type.
enum class ContextExchange : std::uint8_t { ring, all_gather, all_to_all };  // p2p, allgather, a2a

// --moe-token-dispatcher-type; flex counts as alltoall.
enum class TokenDispatcher : std::uint8_t { all_gather, all_to_all };

// --fp8-recipe, where --fp8-format is given.
enum class Fp8Recipe : std::uint8_t { none, delayed, tensorwise, blockwise, mxfp8 };

enum class RecomputeMethod : std::uint8_t { uniform, block };

struct MegatronClient {
  bool transformer_engine = true;  // --transformer-impl
  MegatronAttention attention = MegatronAttention::automatic;
  bool nondeterministic_allowed = true;  // NVTE_ALLOW_NONDETERMINISTIC_ALGO
  bool deterministic_mode = false;
  double hidden_dropout = 0.1;
  double attention_dropout = 0.1;

  // Off: --no-bias-gelu-fusion, --no-bias-swiglu-fusion, --no-rope-fusion, --no-masked-softmax-fusion and
  // --no-gradient-accumulation-fusion.
  bool bias_activation_fusion = true;
  bool rope_fusion = true;
  bool masked_softmax_fusion = true;
  bool gradient_accumulation_fusion = true;

  bool fp32_residual_connection = false;
  bool activation_func_fp8_input_store = false;
  bool create_attention_mask = true;  // off: --no-create-attention-mask-in-dataloader
  // Attention masks are of padding, not of causality: BERT and T5.
  bool padding_mask = false;
  std::optional<MegatronCrossEntropy> cross_entropy;  // empty: te where ClientSetup::loss is fused, else unfused

  ContextExchange context_exchange = ContextExchange::ring;
  bool tp_comm_overlap = false;

  TokenDispatcher token_dispatcher = TokenDispatcher::all_gather;
  bool grouped_gemm = false;
  bool router_fp32 = false;  // --moe-router-dtype fp32

  Fp8Recipe fp8 = Fp8Recipe::none;
  bool fp8_param_gather = false;

  // --recompute-granularity full is ClientSetup::recompute full; its method and number of layers.
  RecomputeMethod recompute_method = RecomputeMethod::uniform;
  std::uint64_t recompute_num_layers = 1;
  // --recompute-granularity selective is ClientSetup::recompute selective; --recompute-modules.
  struct Modules {
    bool core_attention = true;
    bool mlp = false;
    bool moe = false;
    bool shared_experts = false;
    bool layernorm = false;
    bool moe_activation = false;
    bool mla_up_projection = false;
    bool operator==(const Modules&) const = default;
  } recompute_modules;

  // T5: tokens of the decoder (--decoder-seq-length).
  std::uint64_t decoder_sequence = 0;

  bool operator==(const MegatronClient&) const = default;
};

}  // namespace shardplan
