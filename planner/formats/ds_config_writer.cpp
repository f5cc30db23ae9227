#include "planner/formats/ds_config_writer.h"

#include <fmt/format.h>

#include "base/checked.h"
#include "base/error.h"
#include "planner/formats/json_writer.h"

namespace shardplan {
namespace {

[[noreturn]] void refuse(const char* flag, const std::string& problem) {
  throw ConfigError(flag, "", fmt::format("a ds_config.json cannot say {}", problem));
}

void refuse_what_cannot_be_said(const Setup& setup) {
  const Parallelism& p = setup.parallel;
  if (setup.replicate > 1) refuse("--replicate", "that groups replicate, but for stage 3 with --mics");
  if (p.pipeline > 1) refuse("--pp", "pipeline stages: the client's PipelineModule does");
  if (setup.ema) refuse("--ema", "that a moving average is kept");
  if (setup.optimizer_in_backward) refuse("--optimizer-in-backward", "that tensors are updated in the backward");
}

// Which of DeepSpeed's precisions a policy is.
struct Precision {
  DType model = DType::f32;
  bool autocast = false;
  bool masters = false;      // fp16_ or bf16_master_weights_and_grads
  bool moments = false;      // in the masters' dtype, too
  bool cpu_moments = false;  // said to CPU Adam
};

Precision precision_of(const Setup& setup, const DeepSpeedOptions& options) {
  const Policy& policy = setup.policy;
  Precision precision{.model = policy.parameter};
  const auto refuse_dtype = [&](const char* flag, DType dtype, const char* what) {
    refuse(flag, fmt::format("{} in {} with parameters in {}", what, name(dtype), name(policy.parameter)));
  };
  if (precision.model != DType::f32 && precision.model != DType::f16 && precision.model != DType::bf16) {
    refuse("--precision", fmt::format("parameters in {}", name(precision.model)));
  }
  precision.autocast = policy.compute != precision.model;
  if (precision.autocast &&
      !(precision.model == DType::f32 && (policy.compute == DType::f16 || policy.compute == DType::bf16))) {
    refuse_dtype("--precision", policy.compute, "computation");
  }
  const DType master = policy.master.value_or(precision.model);
  if (master != DType::f32 && master != precision.model) refuse_dtype("--master-dtype", master, "masters");
  precision.masters = precision.model != DType::f32 && master == precision.model;
  if (precision.masters && setup.stage == 0) refuse("--zero", "at stage 0 that there are no fp32 masters");
  if (policy.first_moment != policy.second_moment) refuse("--moment-dtype", "two dtypes of moments");
  if (policy.first_moment == DType::f32) return precision;
  if (!precision.masters || policy.first_moment != master) {
    refuse_dtype("--moment-dtype", policy.first_moment, "moments");
  }
  precision.moments = precision.model == DType::bf16;
  precision.cpu_moments = !precision.moments;
  if (precision.cpu_moments && options.offload_optimizer.device == OffloadDevice::none) {
    refuse_dtype("--moment-dtype", policy.first_moment, "moments on the GPU");
  }
  return precision;
}

void add_precision(const Setup& setup, const DeepSpeedOptions& options, const Precision& precision, JsonWriter& json) {
  if (precision.model == DType::f16) {
    json.open("fp16").add("enabled", true);
    if (precision.masters) json.add("fp16_master_weights_and_grads", true);
    json.close();
  }
  if (precision.model == DType::bf16) {
    json.open("bf16").add("enabled", true);
    if (options.bf16_immediate_grad_update) json.add("immediate_grad_update", true);
    if (precision.masters) json.add("bf16_master_weights_and_grads", true);
    if (precision.moments) json.add("bf16_optimizer_states", true);
    json.close();
  }
  if (precision.autocast) {
    json.open("torch_autocast").add("enabled", true).add("dtype", name(setup.policy.compute)).close();
  }
  if (options.grad_accum_dtype) {
    json.open("data_types").add("grad_accum_dtype", name(*options.grad_accum_dtype)).close();
  }
  if (options.communication_data_type) json.add("communication_data_type", name(*options.communication_data_type));
  if (options.seq_parallel_communication_data_type != DType::f32) {
    json.add("seq_parallel_communication_data_type", name(options.seq_parallel_communication_data_type));
  }
}

void add_parallelism(const Parallelism& p, JsonWriter& json) {
  if (p.context > 1) json.add("sequence_parallel_size", p.context);
  if (p.tensor > 1) json.open("tensor_parallel").add("autotp_size", p.tensor).close();
  if (p.expert > 1) {
    json.open("expert_parallel")
        .add("enabled", true)
        .add("autoep_size", p.expert)
        .add("expert_tensor_parallel_size", resolved_expert_tensor(p))
        .close();
  }
}

// DeepSpeed makes Adam, AdamW and Lion itself; SGD is torch.optim's, which ZeRO takes only when told so (engine.py,
// _configure_basic_optimizer and _do_optimizer_sanity_check).
void add_optimizer(const Setup& setup, const DeepSpeedOptions& options, const Precision& precision, JsonWriter& json) {
  const bool offloads = options.offload_optimizer.device != OffloadDevice::none;
  const auto open = [&](const char* type) { json.open("optimizer").add("type", type).open("params"); };
  switch (setup.optimizer) {
    case OptimizerKind::adamw:
      open("AdamW");
      break;
    case OptimizerKind::adam:
      open("Adam");
      json.add("adam_w_mode", false);
      break;
    case OptimizerKind::lion:
      open("Lion");
      break;
    case OptimizerKind::muon:
      open("Muon");
      break;
    case OptimizerKind::sgd:
      open("SGD");
      break;
    case OptimizerKind::sgd_momentum:
      open("SGD");
      json.add("momentum", 0.9);
      break;
    case OptimizerKind::adafactor:
    case OptimizerKind::adam8bit:
      refuse("--optimizer", fmt::format("{}: the client's code makes it", states_of(setup.optimizer).name));
  }
  if (precision.cpu_moments) json.add("fp32_optimizer_states", false);
  json.close().close();
  const bool torch = setup.optimizer == OptimizerKind::sgd || setup.optimizer == OptimizerKind::sgd_momentum;
  if (torch && setup.stage > 0) json.add("zero_allow_untested_optimizer", true);
  if (torch && offloads) json.add("zero_force_ds_cpu_optimizer", false);
}

const char* word(OffloadDevice device) {
  return device == OffloadDevice::nvme ? "nvme" : device == OffloadDevice::cpu ? "cpu" : "none";
}

void add_path(OffloadDevice device, const std::string& path, JsonWriter& json) {
  if (device == OffloadDevice::nvme && path.empty()) {
    throw ConfigError("--offload", "", "a ds_config.json names the folder on nvme: expected CLASS=file:FOLDER");
  }
  if (!path.empty()) json.add("nvme_path", std::string_view(path));
}

void add_offload(const DeepSpeedOptions& options, JsonWriter& json) {
  const DeepSpeedOptions::OffloadOptimizer& optimizer = options.offload_optimizer;
  if (optimizer != DeepSpeedOptions::OffloadOptimizer{}) {
    json.open("offload_optimizer").add("device", word(optimizer.device));
    add_path(optimizer.device, optimizer.nvme_path, json);
    json.add("pin_memory", optimizer.pin_memory).add("buffer_count", optimizer.buffer_count);
    json.add("pipeline_read", optimizer.pipeline_read).add("pipeline_write", optimizer.pipeline_write);
    json.add("ratio", optimizer.ratio).close();
  }
  const DeepSpeedOptions::OffloadParam& param = options.offload_param;
  if (param != DeepSpeedOptions::OffloadParam{}) {
    json.open("offload_param").add("device", word(param.device));
    add_path(param.device, param.nvme_path, json);
    json.add("pin_memory", param.pin_memory).add("buffer_count", param.buffer_count);
    json.add("buffer_size", param.buffer_size).add("max_in_cpu", param.max_in_cpu).close();
  }
}

// What is newer than the format itself is written only where it is used, so that older versions read the file too.
void add_zero(int stage, const DeepSpeedOptions& options, JsonWriter& json) {
  json.open("zero_optimization").add("stage", static_cast<std::uint64_t>(stage));
  json.add("contiguous_gradients", options.contiguous_gradients).add("reduce_scatter", options.reduce_scatter);
  if (!options.use_multi_rank_bucket_allreduce) json.add("use_multi_rank_bucket_allreduce", false);
  json.add("reduce_bucket_size", options.reduce_bucket_size);
  json.add("allgather_bucket_size", options.allgather_bucket_size);
  if (options.overlap_comm) json.add("overlap_comm", *options.overlap_comm);
  json.add("sub_group_size", options.sub_group_size);
  json.add("stage3_prefetch_bucket_size", options.stage3_prefetch_bucket_size);
  json.add("stage3_param_persistence_threshold", options.stage3_param_persistence_threshold);
  json.add("stage3_model_persistence_threshold", options.stage3_model_persistence_threshold);
  json.add("stage3_max_live_parameters", options.stage3_max_live_parameters);
  json.add("stage3_max_reuse_distance", options.stage3_max_reuse_distance);
  if (options.stage3_allgather_sequential) json.add("stage3_allgather_sequential", true);
  if (options.zero_hpz_partition_size != 1) json.add("zero_hpz_partition_size", options.zero_hpz_partition_size);
  if (options.mics_shard_size != -1) json.add("mics_shard_size", options.mics_shard_size);
  if (options.zero_quantized_weights) json.add("zero_quantized_weights", true);
  if (options.zero_quantized_nontrainable_weights) json.add("zero_quantized_nontrainable_weights", true);
  if (options.zero_quantized_gradients) json.add("zero_quantized_gradients", true);
  if (options.zeropp_loco) {
    // The example's values in zero/config.py.
    json.open("zeropp_loco_param").add("err_beta", 0.8).add("reset_T", std::uint64_t{1024}).close();
  }
  add_offload(options, json);
  json.close();
}

}  // namespace

std::string ds_config_text(const Setup& setup, const DeepSpeedOptions& options, std::uint64_t micro_batch) {
  refuse_what_cannot_be_said(setup);
  const Precision precision = precision_of(setup, options);
  JsonWriter json;
  json.add("train_batch_size",
           checked_multiply(checked_multiply(micro_batch, setup.accumulation), data_parallel(setup)));
  json.add("train_micro_batch_size_per_gpu", micro_batch).add("gradient_accumulation_steps", setup.accumulation);
  add_precision(setup, options, precision, json);
  add_parallelism(setup.parallel, json);
  add_optimizer(setup, options, precision, json);
  add_zero(setup.stage, options, json);
  if (options.aio != DeepSpeedOptions::Aio{}) {
    json.open("aio")
        .add("block_size", options.aio.block_size)
        .add("intra_op_parallelism", options.aio.intra_op_parallelism)
        .close();
  }
  return json.finish();
}

}  // namespace shardplan
