// Models as Megatron-LM builds them from its arguments, with its own names and shapes: what its state dict has.
//
// Sources, NVIDIA/Megatron-LM d98e8a64: core/models/gpt/gpt_model.py and gpt_layer_specs.py, core/models/bert/,
// core/models/T5/, core/models/hybrid/hybrid_layer_specs.py; core/transformer/attention.py, multi_latent_attention.py,
// mlp.py, moe/router.py, moe/experts.py, moe/shared_experts.py, multi_token_prediction.py; core/ssm/mamba_mixer.py.
//
// Transformer Engine keeps the norm before a column-parallel module inside it ("linear_qkv.layer_norm_weight"); the local
// implementation has it as a module of its own ("input_layernorm.weight"). Experts with a grouped product are
// "experts.linear_fc1.weight0", "weight1", ...; others "experts.local_experts.0.linear_fc1.weight".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/families/model.h"

namespace shardplan {

enum class MegatronKind : std::uint8_t { gpt, bert, t5, hybrid };
std::string_view name(MegatronKind kind);

enum class MegatronPositions : std::uint8_t {
  learned,   // a table of max_positions rows
  rotary,    // rope, yarn, mrope: no tensor
  relative,  // a bias for each head and bucket, T5 only
  none,
};

// Every member's meaning and default are those of the argument of its name, after Megatron's own checks.
struct MegatronSizes {
  MegatronKind kind = MegatronKind::gpt;
  std::uint64_t vocabulary = 0;  // before padding
  std::uint64_t layers = 0;      // of T5, the decoder's
  std::uint64_t encoder_layers = 0;
  std::uint64_t hidden = 0;
  std::uint64_t ffn = 0;
  std::uint64_t heads = 0;
  std::uint64_t query_groups = 0;  // heads of keys and values
  std::uint64_t kv_channels = 0;   // features of a head
  std::uint64_t max_positions = 0;

  bool transformer_engine = true;
  bool gated = false;  // linear_fc1 makes the gate and the value
  std::string activation = "gelu";
  bool rms_norm = false;
  bool linear_bias = true;
  bool qkv_bias = false;  // that of queries, keys and values alone, where there are no others
  bool qk_norm = false;
  bool output_gate = false;  // attention_output_gate: linear_qkv makes a gate for each head too
  bool untied = false;
  bool binary_head = true;  // BERT's second task
  MegatronPositions positions = MegatronPositions::learned;
  std::uint64_t relative_buckets = 32;

  // Multi-head latent attention.
  struct Latent {
    std::uint64_t query_rank = 0;  // 0: queries are projected at once
    std::uint64_t key_rank = 32;
    std::uint64_t head = 128;
    std::uint64_t rotary = 64;
    std::uint64_t value = 128;
    bool operator==(const Latent&) const = default;
  };
  std::optional<Latent> latent;

  struct Experts {
    std::uint64_t experts = 0;
    std::uint64_t chosen = 2;
    std::uint64_t ffn = 0;         // of one expert
    std::uint64_t shared_ffn = 0;  // of the shared one; 0: there is none
    bool shared_gate = false;
    std::uint64_t latent = 0;     // experts work on so many features; 0: on the hidden ones
    bool grouped = false;         // in one grouped product; only with Transformer Engine
    bool balancing_bias = false;  // moved by load, no parameter
    std::vector<bool> layers;     // which have experts; empty: all
    bool operator==(const Experts&) const = default;
  };
  std::optional<Experts> experts;

  // Depths of multi-token prediction that have parameters of their own.
  std::uint64_t prediction_layers = 0;

  // Hybrid: a letter for each layer. M Mamba-2, * attention, + latent attention, - MLP, E experts.
  std::string pattern;
  std::string prediction_pattern;  // of one depth
  struct Mamba {
    std::uint64_t state = 128;
    std::uint64_t head = 64;
    std::uint64_t groups = 8;
    std::uint64_t heads = 0;  // 0: 2 x hidden / head
    bool operator==(const Mamba&) const = default;
  } mamba;

  // --fp8-param-gather: matrices of blocks are kept in fp8 alone.
  bool fp8_matrices = false;

  bool operator==(const MegatronSizes&) const = default;
};

// The sizes must hold together: counts that are used are not 0, divisors divide, patterns have one entry for each layer
// (planner/formats/megatron_args.h checks what people write). Throws ArithmeticOverflow for what cannot be counted.
Model megatron_model(std::string name, const MegatronSizes& sizes);

// The sizes with which Megatron builds a model of a decoder's modules (Llama and its kin, GPT-2, mixtures of experts):
// found by what its blocks have, and held to it: megatron_model of them has as many parameters, on as many layers. Throws
// ConfigError, with the model as its source, where Megatron has no such model.
MegatronSizes megatron_sizes_of(const Model& model);

}  // namespace shardplan
