// Hugging Face transformers: forwards of its models on a tape, written as its modeling_*.py files read.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "planner/activations/client.h"
#include "planner/activations/tape.h"
#include "planner/activations/unit_view.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan::autograd {

// Cosines and sines of all positions.
struct RotaryTables {
  Value cos{};
  Value sin{};
};

// Tokens of an image, in rows and columns.
struct Grid {
  std::uint64_t height = 0;
  std::uint64_t width = 0;
};

// What the model makes once for all of its blocks. A block that is recomputed keeps it until its backward.
struct SharedByBlocks {
  std::vector<Value> positions{};  // numbers of tokens
  RotaryTables tables{};
  RotaryTables window_tables{};  // of layers that see a window, where theirs differ
  Value mask{};                  // undefined where attention needs none
  Value window_mask{};
  Value bias{};  // of positions, added to all scores
  // Of a decoder beside an encoder: the encoder's output, and the mask and bias of attention to it.
  Value encoded{};
  std::vector<Value> states{};       // what the blocks have read, where the model returns all of it
  Value condition{};                 // what adaptive norms are linear in
  std::vector<Value> modulations{};  // what those of all blocks have in common: scales, shifts and gates
  Grid grid{};                       // of the images behind the first layer
  Value distances{};                 // between tokens
  Value before_last{};  // the input of what was last in the stage before, which a variable holds until the next returns
  Value cross_mask{};
  Value cross_bias{};
};

// What the forward of one rank's part of a model can ask for.
struct ForwardContext {
  Tape& tape;
  const Model& model;
  const Catalog& held;
  const Setup& setup;
  const ClientSetup& client;
  SharedByBlocks shared{};
  bool unfolded = false;  // runs every one of equal blocks: for comparisons

  bool never_caches = false;      // models that make a cache outside training only
  bool never_recomputes = false;  // blocks whose class has no gradient_checkpointing
  bool always_eager = false;      // models whose classes know no other attention
  bool never_packed = false;      // models that say each token's position: no batch is taken for several texts in a row
  bool carries_encoded = false;   // blocks put out what they share as `encoded` too, beside the hidden features
  bool makes_biases = false;      // the first block makes the biases of attention, for all
  bool hands_all_tables = false;  // a block is handed the tables of windows and the others, whichever it rotates by

  // What the routers of the blocks have said so far, where the loss has a term of it: for each block that was run.
  std::vector<Value> routed{};

  // What variables of the model's own forward hold until it returns, of what it does not return (Tape::keep), and those of the
  // base model's, which returns before the head.
  std::vector<Value> locals{};
  std::vector<Value> base_locals{};
  // And those of a block's, until it returns.
  std::vector<Value> block_locals{};

  // The output of the last of the steps in a row that are recomputed by inversion.
  std::shared_ptr<Value> inverted{};

  bool use_cache() const {
    return client.use_cache && model.architecture.use_cache && client.recompute == RecomputeKind::none && !never_caches;
  }
  AttentionKind attention() const { return always_eager ? AttentionKind::eager : resolved_attention(client); }

  DType parameter_dtype() const { return setup.policy.parameter; }
  std::uint64_t batch() const { return client.micro_batch; }
  std::uint64_t tokens() const { return client.sequence; }
};

// hidden [b, s, h] -> the same.
using BlockForward = Value (*)(ForwardContext& context, const UnitView& block, const Value& hidden);

struct HfFamily {
  std::string_view model_type;
  // Runs the whole forward; returns the loss, or on a rank without a head what goes on to the next one.
  Value (*forward)(ForwardContext& context);
};

std::span<const HfFamily> hf_bert_families();
std::span<const HfFamily> hf_chameleon_families();
std::span<const HfFamily> hf_clip_families();
std::span<const HfFamily> hf_cnf_families();
std::span<const HfFamily> hf_dbrx_families();
std::span<const HfFamily> hf_deberta_families();
std::span<const HfFamily> hf_deepseek_families();
std::span<const HfFamily> hf_dit_families();
std::span<const HfFamily> hf_flow_families();
std::span<const HfFamily> hf_flux2_families();
std::span<const HfFamily> hf_gemma3_families();
std::span<const HfFamily> hf_gpt2_families();
std::span<const HfFamily> hf_gpt_neox_families();
std::span<const HfFamily> hf_kimi_vl_families();
std::span<const HfFamily> hf_llama4_families();
std::span<const HfFamily> hf_llama_families();
std::span<const HfFamily> hf_llava_families();
std::span<const HfFamily> hf_mamba2_families();
std::span<const HfFamily> hf_mamba_families();
std::span<const HfFamily> hf_mixtral_families();
std::span<const HfFamily> hf_phimoe_families();
std::span<const HfFamily> hf_qwen_vl_families();
std::span<const HfFamily> hf_sd3_families();
std::span<const HfFamily> hf_sd3_pipeline_families();
std::span<const HfFamily> hf_swin_families();
std::span<const HfFamily> hf_t5_families();
std::span<const HfFamily> hf_vision_families();

std::span<const HfFamily> hf_liger_families();

// Null if the profile does not know it.
const HfFamily* find_hf_family(std::string_view model_type);
// The same with Liger's kernels (profile hf-liger).
const HfFamily* find_liger_family(std::string_view model_type);

// Runs `block` on each of the blocks that the rank holds, from `hidden` on. Of more than three equal ones in a row only
// the first, one of the middle and the last are run: the middle ones leave behind the same.
// `stack`: only those of this name; all if it is empty. `range`: only these of it.
struct BlockRange {
  std::uint64_t first = 0;
  std::uint64_t end = UINT64_MAX;
};
Value run_blocks(ForwardContext& context, BlockForward block, Value hidden, std::string_view stack = {},
                 const BlockRange& range = {});

// The modules of the first blocks of this stack. Throws NotModelled (hf_modules.h).
const ModuleRun& first_blocks(const ForwardContext& context, std::string_view stack);

bool has_module(const ForwardContext& context, std::string_view module);

// The unit of this module outside the blocks, or nothing where the rank does not hold it.
std::optional<UnitView> unit_with(ForwardContext& context, std::string_view module);
// The same, for a module that the forward cannot do without: throws NotModelled (hf_modules.h).
UnitView required_unit(ForwardContext& context, std::string_view module);

}  // namespace shardplan::autograd
