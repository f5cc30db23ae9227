// The client: whose code computes the model on a rank, and how. Decides activations, never model states.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "planner/activations/megatron_client.h"
#include "planner/expert_load.h"
#include "planner/policy.h"

namespace shardplan {

// Whose model code. docs/memory_model.md says which versions each describes.
enum class Profile : std::uint8_t { hf_eager, hf_sdpa, hf_liger, megatron, torchtitan, litgpt, torchtune };
std::string_view name(Profile profile);
Profile profile_named(std::string_view name);  // throws ConfigError, with the known names

// eager: the scores of all pairs of tokens are tensors. sdpa: torch's scaled_dot_product_attention, by whichever kernel it
// chooses. flash: FlashAttention's own kernels.
enum class AttentionKind : std::uint8_t { eager, sdpa, flash };
std::string_view name(AttentionKind attention);

// eager: logits, their fp32 copy and its log-softmax. fused: none of them is kept. chunked: one chunk of tokens at a time.
enum class LossKind : std::uint8_t { eager, fused, chunked };
// "eager", "fused", "chunked=4"
std::string loss_words(LossKind loss, std::uint64_t chunks);

enum class RecomputeKind : std::uint8_t {
  none,
  selective,  // what is cheap to compute again: attention's core
  full,       // each block keeps its input
  every,      // every k-th block does; the others keep what they need
  invert,     // blocks that can be inverted keep nothing
  adjoint,    // of a continuous flow: its end alone is kept, and the adjoint equation solved back from there
};

// Of families of flows alone.
bool is_of_flows(RecomputeKind recompute);

// Which tokens of the batch are padding, as its attention_mask says.
enum class MaskKind : std::uint8_t {
  none,    // the batch has no attention_mask
  ones,    // texts of equal length, packed: no token is
  padded,  // texts of different lengths: attention takes a mask of all pairs
};

// "none", "selective", "full", "every=2", "invert", "adjoint"
std::string recompute_words(RecomputeKind recompute, std::uint64_t every);

// Of profile litgpt: today's code (commit 2685705), or that of October 2023 (commit 0cc02af), which leaves the embedding of a
// quantised model as it is.
enum class LitGptVersion : std::uint8_t { current, of_2023 };

struct ClientSetup {
  Profile profile = Profile::hf_sdpa;
  std::optional<AttentionKind> attention;  // empty: the profile's
  LossKind loss = LossKind::eager;
  std::uint64_t loss_chunks = 1;
  RecomputeKind recompute = RecomputeKind::none;
  std::uint64_t recompute_every = 1;
  std::uint64_t micro_batch = 1;
  std::uint64_t sequence = 0;  // tokens
  std::uint64_t target = 0;    // tokens of a decoder beside an encoder; 0: as many as the sequence has
  // Of a model that reads images: how many there are in each text, and their pixels; 0: the size that the model was made for.
  std::uint64_t images = 1;
  std::uint64_t image_height = 0;
  std::uint64_t image_width = 0;
  MaskKind mask = MaskKind::ones;
  // transformers' models fill a cache of keys and values in training too, unless the config says otherwise; gradient
  // checkpointing switches it off.
  bool use_cache = true;
  // The caller holds what the model returned, logits and cache among it, until the backward has ended, as a loop does that says
  // `outputs = model(...)`. Of transformers' Trainer and of the other programs' recipes: no.
  bool keeps_outputs = false;
  // A loop of plain PyTorch, engine paper alone. Gradients are there from when the backward has made them until the next forward
  // (zero_grad sets them to None); else all the time, as where micro-batches are accumulated.
  bool fresh_gradients = false;
  // AdamW without fused=True (torch/optim/adamw.py, _multi_tensor_adamw): the roots of all second moments at once.
  bool roots_at_once = false;
  // The caller empties torch's cache of free memory before the longest batch comes.
  bool empties_cache = false;
  double adapter_dropout = 0;  // of the inputs of low-rank adapters
  ExpertLoad expert_load{};
  // Of profiles hf-*: ranks of a context group pass keys and values on (accelerate with FSDP2), instead of exchanging heads
  // (DeepSpeed's Ulysses).
  bool passes_keys_on = false;
  // Of profile torchtitan with tensor parallelism: each rank has the loss of its part of the vocabulary. False: the logits are
  // gathered first (training.disable_loss_parallel).
  bool loss_parallel = true;
  // The same with context parallelism: keys and values of all ranks are gathered at once. False: those of one other rank at a time
  // (experimental.context_parallel_rotate_method alltoall).
  bool context_gathers = true;
  // Of its pipelines under FSDP2: the dtype in which whole gradients wait for the last micro-batch. Empty: none do.
  std::optional<DType> waiting_gradients{};
  MegatronClient megatron{};  // of profile megatron
  LitGptVersion litgpt = LitGptVersion::current;
  bool operator==(const ClientSetup&) const = default;
};

AttentionKind resolved_attention(const ClientSetup& client);

// Whether the client computes under torch.autocast: fp32 parameters, and what it lists in 16 bits.
bool autocasts(const Policy& policy);

}  // namespace shardplan
