// DeepSpeed, version 0.19.6: what runtime/zero/stage_1_and_2.py, stage3.py, partition_parameters.py, bf16_optimizer.py,
// fp16/fused_optimizer.py and swap_tensor/ allocate.
//
//   stage 0   whole parameters, gradients, masters and moments
//   stage 1/2 one flat buffer for the trainable tensors, padded to 2 x N elements, of which each rank updates 1/N; frozen
//             tensors stay whole. Stage 1 in bf16 with fp32 gradients is BF16_Optimizer
//   stage 3   each tensor padded to a multiple of N, frozen ones too; what is at most the persistence threshold is also
//             kept whole
//
// One parameter group is assumed (two, as Hugging Face's Trainer makes, pad twice: at most 2 x N elements more).
//
// Optimizers. Below stage 3 and at it, ZeRO hands an optimizer flat partitions: Adafactor has nothing to factor (a whole
// second moment), 8-bit Adam quantises the partition. Both need "zero_allow_untested_optimizer" (runtime/zero/utils.py,
// ZERO_SUPPORTED_OPTIMIZERS) and cannot be offloaded (engine.py, _configure_optimizer). At stage 0 what is not FusedAdam is
// FP16_UnfusedOptimizer: tensors one by one, each state in its shape. Muon (engine.py, _configure_basic_optimizer): two
// parameter groups, momentum in the dtype of accumulated gradients at stages 1 and 2 (stage_1_and_2.py,
// get_flat_partition: whole tensors, also those that a partition holds a part of), of communication at stage 3.
#pragma once

#include "planner/engines/engine.h"

namespace shardplan {

// Elements of a flat buffer of stages 1 and 2: a multiple of 2 x ranks. stage_1_and_2.py, __init__:
// nccl_start_alignment_factor x world size; align_dense_tensors in runtime/utils.py.
std::uint64_t deepspeed_flat_elements(std::uint64_t elements, std::uint64_t ranks);

// What each rank holds of one tensor at stage 3. partition_parameters.py, Init._padding_size.
std::uint64_t deepspeed_shard_elements(std::uint64_t elements, std::uint64_t ranks);

// Tensors that stage 3 never releases, in the order of the model. parameter_offload.py, mark_persistent_parameters.
struct PersistentTensors {
  std::uint64_t tensors = 0;
  std::uint64_t elements = 0;
  std::uint64_t padded_elements = 0;
};
PersistentTensors deepspeed_persistent(const Catalog& catalog, const Setup& setup, const DeepSpeedOptions& options);

// Elements of each sub-group of stage 3: the trainable shards in order, cut where sub_group_size is reached. stage3.py,
// _create_fp16_sub_groups.
std::vector<std::uint64_t> deepspeed_sub_groups(const Catalog& catalog, const Setup& setup,
                                                const DeepSpeedOptions& options);

// Into how many groups CUDAQuantizer cuts a shard of so many elements, each with an fp32 scale of its own: as few as 8000
// elements a group allow, in multiples of 8; nothing where it refuses. partition_parameters.py, CUDAQuantizer.quantize.
std::optional<std::uint64_t> deepspeed_quantization_groups(std::uint64_t elements);

// Makes the policy say what DeepSpeed does with gradients, and the options no more than the policy: micro-batches are
// added up in grad_accum_dtype, else the gradient's dtype (engine.py, get_data_types); what travels is in
// communication_data_type, else the parameter's dtype, with a context axis in seq_parallel_communication_data_type
// (engine.py, communication_data_type and _configure_distributed_model).
void settle_deepspeed(Setup& setup, DeepSpeedOptions& options);

// Throws ConfigError for what DeepSpeed refuses: offload_param and hpZ below stage 3, offload at stage 0, groups that do
// not divide the ranks, optimizers as said above, gradients in another dtype at stage 0, 16-bit masters that need CPU
// Adam without it, shards that cannot be quantised.
EngineTerms deepspeed_terms(const Catalog& catalog, const Setup& setup, const EngineOptions& options);

// DeepSpeed's own estimators, from counts alone: estimate_zero2_model_states_mem_needs (stage_1_and_2.py) and
// estimate_zero3_model_states_mem_needs (stage3.py), per GPU and per node's host. Kept to compare with: they know no
// padding, buffers, persistent or gathered parameters, and count frozen parameters as trained.
struct DeepSpeedEstimate {
  Bytes gpu;
  Bytes cpu;
};
struct DeepSpeedEstimateInput {
  std::uint64_t parameters = 0;
  std::uint64_t largest_layer = 0;  // stage 3
  std::uint64_t gpus_per_node = 1;
  std::uint64_t nodes = 1;
  bool offload_optimizer = true;
  bool offload_param = true;  // stage 3
  bool zero_init = true;      // stage 3
  // Until 0.14.0 stage 2 without offload was said to take 4 P + 16 P / N on a GPU; since, 2 P + 18 P / N.
  bool until_0_14_0 = false;
};
DeepSpeedEstimate deepspeed_estimate_zero2(const DeepSpeedEstimateInput& input);
DeepSpeedEstimate deepspeed_estimate_zero3(const DeepSpeedEstimateInput& input);

}  // namespace shardplan
