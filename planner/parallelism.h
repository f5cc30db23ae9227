// Tensor, pipeline, context and expert parallelism: how ranks share out one model beside the data axis.
//
// A world has tensor x pipeline x context x data ranks. Ranks that differ on the context axis alone hold the same
// parameters and reduce the same gradients, so states are sharded over data x context: Setup::world_size counts both
// (Megatron-LM, core/parallel_state.py: the data-parallel group "with_cp"; DeepSpeed-Ulysses, arXiv 2309.14509, sec. 3.3).
//
// Experts have a mesh of their own over the same ranks of a pipeline stage: expert_tensor x expert x expert data. With
// more than one expert rank their states are sharded over fewer ranks than the rest's (core/parallel_state.py,
// expert_decoder_rank_generator).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace shardplan {

enum class PipelineSchedule : std::uint8_t {
  one_f_one_b,  // Narayanan et al., arXiv 2104.04473, sec. 2.2.1
  interleaved,  // the same, sec. 2.2.2: needs virtual stages
  zero_bubble,  // Qi et al., arXiv 2401.10241
  dualpipe,     // DeepSeek-V3, arXiv 2412.19437, sec. 3.2.1: rank r holds stage r and stage P-1-r, so twice the states
};
std::string_view name(PipelineSchedule schedule);

struct Parallelism {
  // More is less of each layer per rank, and activations exchanged twice per layer.
  std::uint64_t tensor = 1;
  // Stages. More is fewer layers per rank, and a longer pipeline to fill.
  std::uint64_t pipeline = 1;
  // Parts of a sequence. Shrinks activations; states only through a longer data axis.
  std::uint64_t context = 1;
  // Ranks that share out the experts of a layer.
  std::uint64_t expert = 1;
  // Ranks that share out one expert; empty: as many as `tensor`.
  std::optional<std::uint64_t> expert_tensor{};
  // Pieces of the model that each pipeline rank holds, taken in turn.
  std::uint64_t virtual_stages = 1;
  // Activations outside of attention and MLP are split along the sequence; no state changes.
  bool sequence_parallel = false;
  // Empty: interleaved with virtual stages, else one_f_one_b.
  std::optional<PipelineSchedule> schedule{};

  // An uneven pipeline, as Megatron-LM's decoder_first_pipeline_num_layers and decoder_last_pipeline_num_layers (the
  // other stages share out the rest evenly), and account_for_embedding_in_pipeline_split and account_for_loss_...
  // (the embedding, or the head, stands for one layer).
  std::optional<std::uint64_t> first_stage_layers{};
  std::optional<std::uint64_t> last_stage_layers{};
  bool embedding_is_a_layer = false;
  bool loss_is_a_layer = false;

  // Where layers do not divide into the pieces, the pieces behind the first one have one more (torchtitan, parallelisms/
  // pipelining_utils.py, generate_split_points). False: the first ones.
  bool more_layers_behind_first = false;

  // Decoder layers of each piece of the pipeline, pipeline x virtual_stages of them in the order of the model; a piece may
  // have none. Empty: by the rules above, which it excludes (Megatron-LM, pipeline_model_parallel_layout).
  std::vector<std::uint64_t> piece_layers{};

  // The vocabulary is padded to a multiple of this x tensor (Megatron-LM, make_vocab_size_divisible_by, 128 there).
  std::uint64_t vocabulary_multiple = 1;

  bool operator==(const Parallelism&) const = default;
};

PipelineSchedule resolved_schedule(const Parallelism& parallelism);
std::uint64_t resolved_expert_tensor(const Parallelism& parallelism);

// Megatron-LM's --pipeline-model-parallel-layout: "Et*3|(tt|)*29,m|L" (core/transformer/pipeline_parallel_layer_layout.py).
// Pieces stand between bars: E the embedding, t a decoder layer, m a layer of multi-token prediction, L the loss; x*n and
// (...)*n repeat. The embedding is the first and the loss the last of all. Throws ConfigError, with the flag as its source.
struct PipelineLayout {
  std::vector<std::uint64_t> decoder_layers;      // of each piece
  std::vector<std::uint64_t> multi_token_layers;  // of each piece
};
PipelineLayout parse_pipeline_layout(std::string_view text);

// Whether states of experts are sharded over other ranks than the rest's.
bool experts_apart(const Parallelism& parallelism);

// Throws ConfigError, with the flag as its source, for numbers that contradict each other.
void validate(const Parallelism& parallelism);

}  // namespace shardplan
