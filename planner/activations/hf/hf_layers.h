// Layers that models of transformers share.
#pragma once

#include <cstdint>
#include <string_view>

#include "planner/activations/hf/hf_model.h"

namespace shardplan::autograd {

Value linear(const Value& x, const Parameters& layer);

// down(act(gate(x)) * up(x)) and down(act(up(x))), by the names of their modules below `name`.
Value gated_mlp(const UnitView& block, std::string_view name, const Value& x);
Value plain_mlp(const UnitView& block, std::string_view name, std::string_view up, std::string_view down,
                const Value& x);

// --- Norms ---

using Norm = Value (*)(const Parameters& layer, const Value& x);

Value rms_norm(const Parameters& layer, const Value& x);          // fp32, weighted in the input's dtype (LlamaRMSNorm)
Value rms_norm_in_fp32(const Parameters& layer, const Value& x);  // weighted in fp32 (Olmo2RMSNorm)
Value gemma_norm(const Parameters& layer, const Value& x);        // by 1 + weight, in fp32 (GemmaRMSNorm)
Value l2_norm(const Value& x);                                    // in fp32, without weights (Llama4TextL2Norm)
Value layer_norm(const Parameters& layer, const Value& x);        // nn.LayerNorm
Value olmo_norm(const Parameters& layer, const Value& x);         // without weights, in fp32 (OlmoLayerNorm)
Value cohere_norm(const Parameters& layer, const Value& x);       // operation by operation in fp32 (CohereLayerNorm)
Value nemotron_norm(const Parameters& layer, const Value& x);     // by 1 + weight (NemotronLayerNorm1P)

// --- Positions ---

// How queries and keys are rotated by their positions (apply_rotary_pos_emb).
enum class Rotation : std::uint8_t {
  plain,        // in their own dtype, cosines and sines too (Llama)
  wide_tables,  // cosines and sines are fp32, and the result is cast back (OLMo)
  interleaved,  // neighbours are pairs, all in fp32 (Cohere)
  halves,       // tables of half the features (gpt-oss)
  complex,      // one table of complex numbers, in place of the cosines (DeepSeek-V2)
};

// The cosines and sines of all positions: made once, without gradients (LlamaRotaryEmbedding).
RotaryTables make_rotary(ForwardContext& context, std::uint64_t features, Rotation rotation = Rotation::plain);

// x cos + rotate_half(x) sin; x [b, h, s, d].
Value rotate(const Value& x, const RotaryTables& tables);
// Queries, then keys; both stay until the second is there.
void rotate(Value& q, Value& k, const RotaryTables& tables, Rotation rotation = Rotation::plain);
// Their first `features` only: both, and then each joined with its rest, or each at once.
enum class RotatedParts : std::uint8_t { together, one_by_one };
void rotate_part(Value& q, Value& k, const RotaryTables& tables, std::uint64_t features,
                 RotatedParts order = RotatedParts::together);

// --- The model around the blocks ---

// Where the embedding is multiplied by a number: inside its own module, behind it, or once the masks are made, which keeps it
// beside the product until the blocks have run.
enum class EmbeddingScale : std::uint8_t { none, in_module, at_once, after_masks };

// What is kept of routers for the loss.
enum class RouterSays : std::uint8_t { logits, probabilities };

// Which masks a model makes before its blocks run.
enum class Masks : std::uint8_t {
  one,              // in the window, where there is one
  both,             // of all tokens and in the window, whatever the blocks ask for
  window_if_asked,  // of all tokens, and in the window if a block has it
};

struct CausalLm {
  BlockForward block;
  std::string_view stack = {};  // of its blocks; all if it is empty
  // Where it is not words alone that the blocks read: on the rank that has the embedding of words.
  Value (*embed)(ForwardContext& context) = nullptr;
  bool holds_input = false;  // what the blocks read is a local of the model around the base model
  Norm norm = rms_norm;
  std::string_view embedding = "model.embed_tokens";
  std::string_view embedding_dropout = {};
  // Of the embedding once the masks are made; what goes in stays beside what comes out.
  std::string_view late_dropout = {};
  std::string_view last_norm = "model.norm";
  std::string_view head = "lm_head";
  Rotation rotation = Rotation::plain;
  EmbeddingScale embedding_scale = EmbeddingScale::none;
  bool scaled_logits = false;
  // Takes the logits, which live until it returns; causal_loss if it is null.
  Value (*loss)(ForwardContext& context, Value logits) = nullptr;
  Value (*mask)(ForwardContext& context) = nullptr;  // where the model makes one of its own
  bool older_mask = false;                           // as older models make it (make_older_mask)
  Masks masks = Masks::one;
  bool masks_of_images = false;
  bool two_tables = false;        // of cosines and sines, likewise
  bool hands_all_tables = false;  // see ForwardContext
  bool never_caches = false;
  bool own_tables = false;                                    // blocks make their own
  RotaryTables (*tables)(ForwardContext& context) = nullptr;  // where they are not make_rotary's
  RouterSays routers_say = RouterSays::logits;
  // Head and loss of the last features, where they are one; else logits and causal_loss.
  Value (*fused_loss)(ForwardContext& context, const Parameters& head, const Value& hidden) = nullptr;
};

// What an embedding puts out. Checkpointed with adapters it wants a gradient (enable_input_require_grads, which peft calls): where it
// has none it becomes a leaf.
Value embedding_output(const ForwardContext& context, const Value& x);

// embedding, blocks, norm, head, loss.
Value causal_lm(ForwardContext& context, const CausalLm& model);

// Of each token the next one. Shifted by padding and slicing: of more than one text, the slice has gaps and is copied. Ranks that share
// a text out are given them shifted.
Value next_words(ForwardContext& context);

// Logits in fp32, and their mean cross entropy (loss/loss_utils.py, ForCausalLMLoss).
Value causal_loss(ForwardContext& context, const Value& logits);

}  // namespace shardplan::autograd
