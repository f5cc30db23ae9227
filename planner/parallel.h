// The distinct kinds of ranks of a world, and what each holds of the model.
//
// Everything downstream (layouts, engines, reports) takes a plain Catalog of ONE kind of rank and a Setup, as if that
// catalog were the whole model of ranks that differ on the data axis alone.
//
// Pipeline. The blocks of the model's main stack (the last one) are its layers. A stage holds consecutive layers; the
// first one also what comes before them (embeddings, towers, encoders), the last one what comes after (norm, head).
//   even           layers / stages each. Where that is not whole, the first stages have one more (DeepSpeed,
//                  runtime/utils.py partition_uniform); a note says so.
//   uneven         Parallelism's layers of the first and last stage, or an embedding and a loss that stand for a layer
//                  (Megatron-LM, core/transformer/transformer_block.py get_num_layers_to_build).
//   laid out       each piece's layers as Parallelism::piece_layers says.
//   interleaved    with V virtual stages rank r of P holds pieces r, r + P, ... of P x V in a row; each rank's layers
//                  divide by V (the same, get_transformer_layer_offset).
//   dualpipe       rank r holds stages r and P - 1 - r.
// A tensor tied to one that is on another stage has elements of its own there: Megatron-LM keeps the word embedding on
// the first and on the last stage and sums the two gradients (core/distributed/finalize_model_grads.py).
//
// Multi-token prediction (Megatron-LM's --mtp-num-layers; DeepSeek-V3's num_nextn_predict_layers) is a block behind the main
// stack on the last stage, or where a layout's m stands. Megatron-LM's own models have it: the stack
// "mtp.layers", which is never the main one, and always on the last stage. No other family makes its tensors, so it is in no
// catalog; a note says so where a model's file names it.
//
// Scales of quantised tensors (planner/lora.h) are made of what a rank holds, so they are split with their weights. On the data
// axis engine shardplan shards them like other frozen tensors; bitsandbytes keeps them beside its parameters, where DeepSpeed
// and FSDP2 do not see them: whole on every rank (planner/engines/owned.h).
//
// Tensors and experts: planner/tensor_split.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/families/model.h"
#include "planner/parallelism.h"
#include "planner/setup.h"

namespace shardplan {

struct RankKind {
  std::string role = "all";  // or "pipeline 0", "pipeline 1", ...
  std::uint64_t count = 1;   // ranks of this kind
  Catalog catalog;           // its notes are the model's and what is to be said of the split
  bool operator==(const RankKind&) const = default;
};

// One kind for each pipeline stage, in order: stages differ in what they hold, and in how many micro-batches are under
// way. The model's modules are used to check heads and experts; where it has none, sizes alone are. Throws ConfigError,
// with the flag as its source, where something does not divide.
std::vector<RankKind> kinds_of_ranks(const Model& model, const Setup& setup);

// The name of the stack of blocks that a pipeline is cut along: the last one, but for the depths of multi-token
// prediction, which are with the head (Megatron-LM, core/transformer/multi_token_prediction.py). Empty where there is none.
std::string main_stack(const Catalog& catalog);

// Layers of each piece of the pipeline, pipeline x virtual_stages of them, in the order of the model. Throws ConfigError.
std::vector<std::uint64_t> layers_of_pieces(std::uint64_t layers, const Parallelism& parallelism);

// Splits a rank's catalog by the data axes of its tensors: those of experts that are apart, and the others. Where one
// kind is all there is, the other catalog has no runs.
struct DataAxes {
  Catalog others;
  Catalog experts;
};
DataAxes split_by_data_axis(const Catalog& catalog);

}  // namespace shardplan
