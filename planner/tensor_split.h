// What one rank of a tensor-parallel and expert-parallel group holds of a unit's tensors.
//
// How a tensor is split follows from its name, so that a model is split alike whatever file it was read from:
//
//   column      the outputs of a linear module are shared out: queries, keys, values, gate and up projections, and their
//               biases. Keys and values too where there are fewer heads of them than ranks: a rank then holds a part of
//               a head, and the activations are gathered (Megatron-LM, core/transformer/attention.py).
//   row         the inputs are shared out: the projection from the heads, the down projection. Their biases are whole.
//   vocabulary  word embeddings and heads, by their rows, after padding; whatever else outside of the blocks has a row
//               for each word.
//   whole       everything else: norms, routers, positions, the down projections of latent attention.
//
// An adapter (planner/lora.h) is split as what it adapts: of B the outputs, of A the inputs, the rank r never.
// Experts are shared out whole first: rank e of the expert group holds those from e x experts / expert_ranks.
//
// Sources: Shoeybi et al., arXiv 1909.08053, sec. 3; Megatron-LM core/tensor_parallel/layers.py (ColumnParallelLinear,
// RowParallelLinear, VocabParallelEmbedding), core/transformer/multi_latent_attention.py, core/transformer/moe/experts.py,
// core/ssm/mamba_mixer.py, training/tokenizer (vocab_size_with_padding).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/catalog.h"
#include "planner/parallelism.h"

namespace shardplan {

class TensorSplit {
 public:
  TensorSplit(const Catalog& catalog, Parallelism parallelism);

  // The tensors of one unit of the run that a rank holds. Throws ConfigError where sizes do not divide.
  std::vector<Tensor> part_of(const UnitRun& run) const;

  // What to tell the user: padding of the vocabulary, matrices in blocks that no rule splits.
  std::vector<std::string> notes(const Catalog& catalog) const;

 private:
  enum class Axis : std::uint8_t { whole, column, row };

  static Axis axis_of(std::string_view name);
  std::optional<std::size_t> split_dim(const UnitRun& run, const Tensor& tensor) const;
  void divide_dim(const UnitRun& run, Tensor& tensor, std::size_t dim, std::uint64_t ranks, const char* flag) const;
  void split_vocabulary(Tensor& tensor) const;
  void split_in_block(const UnitRun& run, Tensor& tensor, bool fused_expert) const;

  const std::string model_;
  const Parallelism parallelism_;
  std::uint64_t vocabulary_ = 0;  // rows of the word embedding; 0: there is none
};

// Whether one of the name's components is "experts".
bool names_expert(std::string_view name);

// GPT-2's Conv1D: whether linear weights of this unit are stored [input, output].
bool stores_transposed(const UnitRun& run);

}  // namespace shardplan
