// What Megatron-LM's own modules and Transformer Engine's allocate, save and allocate in backward.
//
// M = NVIDIA/Megatron-LM d98e8a64, files below megatron/core; TE = TransformerEngine 2.11 and 2.17.1, files below
// transformer_engine/pytorch. For 16-bit training both versions of TE save the same tensors. Activations are
// [tokens, features]; sizes are those of one rank.
//
// Weights are no Values here: their gradients go into the engine's main gradients. Where a product makes one first
// (no gradient_accumulation_fusion), it is held until it has been added there.
#pragma once

#include <set>
#include <utility>

#include "planner/activations/client.h"
#include "planner/activations/megatron/sizes.h"
#include "planner/activations/tape.h"
#include "planner/setup.h"

namespace shardplan::autograd {

// What a forward used of what a process keeps for good.
struct MegatronUse {
  // Rows and columns of weights whose products add to main gradients and return a stand-in for the gradient: TE keeps one
  // for each shape (module/base.py, get_dummy_wgrad; M tensor_parallel/layers.py for the output layer).
  std::set<std::pair<std::uint64_t, std::uint64_t>> stand_ins;
  std::uint64_t global_buffer_bytes = 0;  // M core/utils.py, GlobalMemoryBuffer "mpu": grows to its largest user
  std::uint64_t rotary_bytes = 0;         // M models/common/embeddings/rotary_pos_embedding.py, lru_cache
  std::uint64_t fp8_weight_bytes = 0;     // TE module/base.py, _fp8_workspaces
  bool torch_products = false;
  bool te_products = false;
};

struct MegatronContext {
  Tape& tape;
  const Setup& setup;
  const ClientSetup& client;
  DType dtype = DType::bf16;
  MegatronTokens tokens{};
  MegatronUse use{};

  const MegatronClient& megatron() const { return client.megatron; }
  std::uint64_t tensor() const { return setup.parallel.tensor; }
  bool splits_sequence() const { return tokens.split < tokens.tokens; }
  bool selects(bool MegatronClient::Modules::* module) const {
    return client.recompute == RecomputeKind::selective && megatron().recompute_modules.*module;
  }
  Value allocate(std::string_view operation, Shape shape) { return tape.allocate(operation, std::move(shape), dtype); }
  void use_global_buffer(std::uint64_t bytes);
};

// Saves its input in the compute dtype and its statistics, fp32: rsigma, and mu of a LayerNorm (TE
// module/layernorm_linear.py:466). Of TE, and of apex for the local implementation.
Value norm(MegatronContext& context, const Value& x, bool rms);

struct LinearOptions {
  bool whole = false;            // the weight is not split: TELinear of latent attention
  bool recomputed_input = false;  // the input is dropped and made again (M tensor_parallel/random.py, CheckpointWithoutOutput)
  bool original_input = false;   // fp8: the 16-bit input is kept (M transformer/attention.py, set_save_original_input)
};
// Of a weight split by its outputs. With sequence parallelism the input is gathered, kept split and gathered again in
// backward (TE module/layernorm_linear.py:382; M tensor_parallel/layers.py).
Value column_linear(MegatronContext& context, const Value& x, std::uint64_t output, const LinearOptions& options = {});
// Of a weight split by its inputs: what comes out is summed over ranks, or scattered along the sequence.
Value row_linear(MegatronContext& context, const Value& x, std::uint64_t output, const LinearOptions& options = {});

// Dropout saves its mask, 1 byte an element; at rate 0 it saves nothing (M fusions/fused_bias_dropout.py).
Value bias_dropout_add(MegatronContext& context, const Value& x, const Value& residual, bool has_bias);

// gelu, or silu(gate) x value, fused with the bias or not (M fusions/fused_bias_gelu.py, fused_bias_swiglu.py; mlp.py).
Value mlp_activation(MegatronContext& context, Value x, std::uint64_t width, bool gated, bool has_bias);

// Rotary positions on [tokens, heads x head].
Value rotate(MegatronContext& context, const Value& x, std::uint64_t heads, std::uint64_t head);

struct CoreAttention {
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;
  std::uint64_t head = 0;
  std::uint64_t value = 0;
  std::uint64_t queries = 0;  // positions of this rank
  std::uint64_t keys = 0;
  bool q_view = false;  // of the product of all three: not contiguous
  bool k_view = false;
  bool v_view = false;
  bool recomputed_inputs = false;
};
// softmax(q k^T) v by the backend that the client chooses: what goes into the output projection.
Value core_attention(MegatronContext& context, const Value& q, const Value& k, const Value& v,
                     const CoreAttention& sizes);
MegatronAttention resolved_attention(const MegatronContext& context, const CoreAttention& sizes);

// Loss of the tokens from the output layer's product, with all of a rank's vocabulary.
Value vocabulary_loss(MegatronContext& context, const Value& hidden, std::uint64_t vocabulary);

// Floating point of 8 bits and its scales.
std::uint64_t fp8_scale_bytes(Fp8Recipe recipe, std::uint64_t elements);

}  // namespace shardplan::autograd
