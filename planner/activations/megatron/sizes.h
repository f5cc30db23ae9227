// A transformer's layer as Megatron-LM runs it, whatever file the model was read from: its sizes, read off its modules,
// and what one rank has of each.
#pragma once

#include <cstdint>
#include <optional>

#include "planner/activations/client.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan {

// Of a whole layer.
struct MegatronLayer {
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;
  std::uint64_t head = 0;   // features of a query's and a key's head
  std::uint64_t value = 0;  // of a value's
  bool rotary = false;
  bool rms_norm = false;
  bool bias = false;
  bool qk_norm = false;          // on each head of queries and keys
  bool cross_attention = false;  // to an encoder's output, between self-attention and MLP

  struct Latent {
    std::uint64_t query_rank = 0;  // 0: queries are projected at once
    std::uint64_t key_rank = 0;
    std::uint64_t rotary = 0;  // features of a head that positions rotate
    bool norms = false;        // before the projections up
    bool operator==(const Latent&) const = default;
  };
  std::optional<Latent> latent;

  std::uint64_t ffn = 0;  // 0: no dense MLP
  bool gated = false;

  struct Experts {
    std::uint64_t experts = 0;
    std::uint64_t chosen = 0;
    std::uint64_t ffn = 0;
    std::uint64_t shared_ffn = 0;  // 0: no shared expert
    bool operator==(const Experts&) const = default;
  };
  std::optional<Experts> experts;

  bool operator==(const MegatronLayer&) const = default;
};

// Nothing where the modules are no transformer's layer: no attention, a scan, a convolution.
std::optional<MegatronLayer> megatron_layer(const Modules& modules);

// What a rank has of the tokens.
struct MegatronTokens {
  std::uint64_t batch = 1;
  std::uint64_t sequence = 0;  // positions of this rank: a part of the sequence with context parallelism
  std::uint64_t whole = 0;     // positions of the sequence
  std::uint64_t tokens = 0;    // batch x sequence
  // Where activations are split along the sequence (sequence parallelism), the rank's part; else all tokens.
  std::uint64_t split = 0;
  bool operator==(const MegatronTokens&) const = default;
};
// Throws ConfigError where the sequence does not divide.
MegatronTokens megatron_tokens(const Setup& setup, const ClientSetup& client, std::uint64_t sequence);

}  // namespace shardplan
