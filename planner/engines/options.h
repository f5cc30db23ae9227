// What other engines are told: their own options, with their own defaults. Plain structs that a reader of a
// configuration file fills; counts are elements, not bytes, where the engines count so.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "base/dtype.h"

namespace shardplan {

enum class OffloadDevice : std::uint8_t { none, cpu, nvme };

// ds_config.json of DeepSpeed 0.19.6: the members of zero_optimization and others that decide bytes, under their names
// there (runtime/zero/config.py, offload_config.py; runtime/swap_tensor/constants.py). formats/ds_config.h reads it.
//
// Not here because the policy says it (setup.h): fp16 and bf16 (parameter), fp16_ and bf16_master_weights_and_grads
// (master), bf16_optimizer_states and CPU Adam's fp32_optimizer_states (moments).
struct DeepSpeedOptions {
  bool contiguous_gradients = true;  // false: no bucket buffers, but gradients wait for their bucket and are copied
  bool reduce_scatter = true;
  // Stages 1 and 2, with reduce_scatter. true: a bucket is all-reduced through a flat copy of its slices, twice the wire
  // bytes. false: each slice is reduced to the rank that keeps it.
  bool use_multi_rank_bucket_allreduce = true;
  std::uint64_t reduce_bucket_size = 500'000'000;
  std::uint64_t allgather_bucket_size = 500'000'000;
  std::optional<bool> overlap_comm;  // empty: at stage 3. At stages 1 and 2 it costs a second bucket
  std::uint64_t sub_group_size = 1'000'000'000;

  std::uint64_t stage3_prefetch_bucket_size = 50'000'000;
  std::uint64_t stage3_param_persistence_threshold = 100'000;
  std::uint64_t stage3_model_persistence_threshold = std::numeric_limits<std::int64_t>::max();
  std::uint64_t stage3_max_live_parameters = 1'000'000'000;
  std::uint64_t stage3_max_reuse_distance = 1'000'000'000;
  bool stage3_allgather_sequential = false;  // each tensor gathered into its own memory: no buffer, no prefetch

  std::uint64_t zero_hpz_partition_size = 1;         // ranks that share a second copy of the parameters; 1: none
  std::int64_t mics_shard_size = -1;                 // ranks that shard; the rest replicate. -1: all shard
  bool zero_quantized_weights = false;               // gathers travel in int8
  bool zero_quantized_nontrainable_weights = false;  // shards of what is frozen are kept in int8, with scales
  // Among nodes, gradients travel in 4 bits instead of through a reduce-scatter; with LoCo two 8-bit buffers keep the error.
  bool zero_quantized_gradients = false;
  bool zeropp_loco = false;  // zeropp_loco_param is there

  struct OffloadParam {
    OffloadDevice device = OffloadDevice::none;
    std::uint64_t buffer_count = 5;
    std::uint64_t buffer_size = 100'000'000;
    std::uint64_t max_in_cpu = 1'000'000'000;
    bool pin_memory = true;
    std::string nvme_path{};  // a folder; decides no bytes
    bool operator==(const OffloadParam&) const = default;
  } offload_param;

  struct OffloadOptimizer {
    OffloadDevice device = OffloadDevice::none;
    std::uint64_t buffer_count = 4;
    bool pin_memory = true;
    double ratio = 1.0;           // stage 3: the part of the sub-groups that is offloaded
    bool pipeline_read = false;   // nvme: the next sub-group comes while one is updated. No bytes of its own, but each
    bool pipeline_write = false;  // of the two needs as many buffers again
    std::string nvme_path{};
    bool operator==(const OffloadOptimizer&) const = default;
  } offload_optimizer;

  struct Aio {
    std::uint64_t block_size = 1'048'576;
    std::uint64_t intra_op_parallelism = 1;
    bool operator==(const Aio&) const = default;
  } aio;

  std::optional<DType> grad_accum_dtype;                    // data_types; empty: the gradient's
  std::optional<DType> communication_data_type;             // gradients on the wire; empty: the parameter's
  DType seq_parallel_communication_data_type = DType::f32;  // the same with a context axis
  bool bf16_immediate_grad_update = false;

  // Of the client's code, not of the file. zero_init: the model is built inside deepspeed.zero.Init, so that no rank
  // ever holds it whole (stage 3). load_dtype: in which it is built otherwise, on every rank.
  bool zero_init = false;
  DType load_dtype = DType::f32;

  bool operator==(const DeepSpeedOptions&) const = default;
};

// torch.distributed.fsdp.fully_shard on each unit that repeats and on the root.
struct Fsdp2Options {
  // Empty: at stage 3 but not for the root. False (stage 2) keeps what was gathered until the backward.
  std::optional<bool> reshard_after_forward;
  std::optional<DType> reduce_dtype;  // MixedPrecisionPolicy; empty: the gradient's
  // set_requires_gradient_sync. False: gradients stay whole, in the reduction's dtype, and are reduced behind the last
  // micro-batch, as torch.distributed.pipelining has it (stage.py, backward_maybe_with_nosync).
  bool gradient_sync = true;
  bool offload = false;    // CPUOffloadPolicy: shards, gradients and states live on the host
  bool pin_memory = true;  // of CPUOffloadPolicy

  bool operator==(const Fsdp2Options&) const = default;
};

enum class MegatronSharding : std::uint8_t { no_shard, optim, optim_grads, optim_grads_params };

// Megatron-LM d98e8a64, megatron/training/arguments.py.
struct MegatronOptions {
  // Empty: by stage. 0 neither, 1 the distributed optimizer, 2 and 3 Megatron's FSDP.
  std::optional<bool> use_distributed_optimizer;
  // Shard over ranks / instances, replicate across: more memory, less traffic between nodes.
  std::uint64_t num_distributed_optimizer_instances = 1;
  bool use_megatron_fsdp = false;
  std::optional<MegatronSharding> data_parallel_sharding_strategy;  // empty: by stage; given: its FSDP

  // Of its FSDP. Two units' buffers are kept all the time, instead of what is under way.
  bool fsdp_double_buffer = false;
  // Elements: half is gathered ahead, as many wait for their reduction. Empty: the larger of 1e9 and twice the mean unit.
  std::optional<std::uint64_t> suggested_communication_unit_size;

  bool overlap_grad_reduce = false;              // off: one bucket, whatever ddp_bucket_size
  std::optional<std::uint64_t> ddp_bucket_size;  // elements; empty: max(40e6, 1e6 x dp)
  bool pad_buckets_for_high_nccl_busbw = false;

  // Both: what gradients are kept and reduced in. bf16: --grad-reduce-in-bf16.
  DType main_grads_dtype = DType::f32;
  bool use_precision_aware_optimizer = false;
  DType main_params_dtype = DType::f32;
  DType exp_avg_dtype = DType::f32;
  DType exp_avg_sq_dtype = DType::f32;
  // With the precision-aware optimizer, bf16 parameters and fp32 main parameters: only the 16 bits that the bf16
  // parameter lacks are kept.
  bool store_param_remainders = true;

  // --optimizer-cpu-offload and its fraction: masters and moments in pinned host memory.
  bool optimizer_cpu_offload = false;
  double optimizer_offload_fraction = 1.0;

  bool operator==(const MegatronOptions&) const = default;
};

struct EngineOptions {
  std::uint64_t gpus_per_node = 8;
  DeepSpeedOptions deepspeed;
  Fsdp2Options fsdp2;
  MegatronOptions megatron;

  bool operator==(const EngineOptions&) const = default;
};

}  // namespace shardplan
