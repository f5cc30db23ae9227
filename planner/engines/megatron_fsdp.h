// Megatron-FSDP (megatron/core/distributed/fsdp/src/megatron_fsdp/): what Megatron-LM's --use-megatron-fsdp holds.
//
// Each transformer layer is a unit; what is outside of units goes into buckets of bucket_size elements. A bucket holds
// parameters of one dtype, frozen or trained, and is laid out so that rows are not cut: parameters start at multiples of a
// chunk (the least common multiple of row sizes), what is smaller fills gaps, and the bucket ends at a multiple of N
// chunks (param_and_grad_buffer.py, _get_parameter_groups and build_data_parallel_buffer_index).
//
//   optim               states are sharded, parameters and main gradients whole
//   optim_grads         main gradients too; a bucket's whole gradients are there until they are reduced
//   optim_grads_params  parameters too. Units are gathered and released; what is outside of units stays gathered, between
//                       steps too (AllGatherPipeline.reset, preserve_non_fsdp_units)
//
// Main parameters are a copy of their own in any case, of fp32 parameters too (mixed_precision.py, main_params_dtype).
//
// How much is under way (megatron_fsdp.py, suggested_communication_unit_size): gathers run ahead by half of it, reduced
// buckets wait up to it. It is 1e9 elements or twice the mean unit, the larger of the two, so most models are gathered
// and wait for their reduction as a whole. --fsdp-double-buffer keeps two units of each instead, all the time.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/catalog.h"
#include "planner/engines/options.h"
#include "planner/engines/owned.h"

namespace shardplan {

// Elements of one bucket's buffer. `ranks` 0: not padded (no_shard).
std::uint64_t megatron_fsdp_bucket(const std::vector<Shape>& parameters, std::uint64_t ranks);

void add_megatron_fsdp(const Setup& setup, const std::vector<OwnedRun>& runs, const MegatronOptions& options,
                       MegatronSharding sharding, TermList& list);

}  // namespace shardplan
