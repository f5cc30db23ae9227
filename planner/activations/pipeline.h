// What a rank of a pipeline holds of several micro-batches at once: pure functions of the schedule.
//
// A rank has one or more chunks of the model. The forward of a micro-batch through a chunk leaves saved tensors behind that
// its backward frees. How many are held together follows from the order of passes:
//
//   1f1b          P - r micro-batches on stage r of P (Narayanan et al., arXiv 2104.04473, sec. 2.2.1; Megatron-LM
//                 core/pipeline_parallel/schedules.py, forward_backward_pipelining_without_interleaving)
//   interleaved   2 (P - r - 1) + (V - 1) P forwards of chunks first, then one forward for each backward (the same, sec.
//                 2.2.2; schedules.py, get_pp_rank_microbatches and get_schedule_table)
//   zero-bubble   P on every stage: what stage r saves of 1f1b's P it holds for delayed weight gradients (Qi et al., arXiv
//                 2401.10241, sec. 3, ZB-H1). As an upper bound, a micro-batch counts whole until its weights have their
//                 gradients
//   dualpipe      P + 1: P - r of one direction's stage and r + 1 of the other's (DeepSeek-V3, arXiv 2412.19437, table 2)
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "planner/activations/activity.h"
#include "planner/families/model.h"
#include "planner/parallelism.h"

namespace shardplan {

struct ChunkPass {
  std::uint64_t chunk = 0;  // of those of the rank, in the order of the model
  autograd::Pass pass = autograd::Pass::forward;
  bool operator==(const ChunkPass&) const = default;
};

// The order of a rank's passes in one step, for 1f1b and interleaved. `group`: micro-batches that pass a chunk before the
// next chunk's turn; 0: as many as stages (Megatron-LM, microbatch_group_size_per_vp_stage).
std::vector<ChunkPass> order_of_passes(const Parallelism& parallelism, std::uint64_t rank, std::uint64_t micro_batches,
                                       std::uint64_t group = 0);

// Interleaving takes the micro-batches of a step in groups of as many as stages (schedules.py,
// forward_backward_pipelining_with_interleaving, which fails else). What is wrong; empty where nothing is.
std::string uneven_interleaving(const Parallelism& parallelism, std::uint64_t micro_batches);

// For each chunk, micro-batches whose saved tensors are held.
using HeldChunks = std::vector<std::uint64_t>;

// While a pass of `chunk` runs, that one's own micro-batch included, at the moment at which most are held in all.
HeldChunks held_while(const Parallelism& parallelism, std::uint64_t rank, std::uint64_t micro_batches,
                      std::uint64_t chunk);
// At most, over all passes.
HeldChunks most_held(const Parallelism& parallelism, std::uint64_t rank, std::uint64_t micro_batches);

// The chunks that a rank holds of the model, each as a catalog of its own, in order. `held` is that of the rank
// (planner/parallel.h). One that stands for the embedding or the loss alone has no layers; a layout may leave one empty.
std::vector<Catalog> chunks_of(const Model& model, const Catalog& held, const Parallelism& parallelism,
                               std::uint64_t rank);

struct PipelinePeak {
  ActivityPeak peak;        // what is held of all micro-batches together
  std::uint64_t chunk = 0;  // in whose pass
  HeldChunks held;          // at that moment
};
// The worst moment of a rank: of `chunks`, the activity of one micro-batch in each, with the micro-batches in flight.
PipelinePeak peak_of(std::span<const Activity> chunks, const Parallelism& parallelism, std::uint64_t rank,
                     std::uint64_t micro_batches);

}  // namespace shardplan
