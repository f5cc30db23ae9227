#include <fmt/format.h>

#include "base/checked.h"
#include "base/error.h"
#include "planner/engines/deepspeed.h"
#include "planner/formats/accelerate_config.h"
#include "planner/formats/yaml.h"

namespace shardplan {
namespace {

[[noreturn]] void refuse(const char* flag, const std::string& problem) {
  throw ConfigError(flag, "", fmt::format("accelerate's YAML cannot say {}", problem));
}

// What no kind of file says.
void refuse_what_cannot_be_said(const Setup& setup) {
  if (setup.ema) refuse("--ema", "that a moving average is kept");
  if (setup.optimizer_in_backward) refuse("--optimizer-in-backward", "that tensors are updated in the backward");
  if (setup.parallel.virtual_stages > 1) refuse("--virtual-stages", "virtual stages");
  if (setup.parallel.first_stage_layers) refuse("--first-stage-layers", "how many layers the first stage has");
  if (setup.parallel.embedding_is_a_layer || setup.parallel.loss_is_a_layer) {
    refuse("--embedding-is-a-layer", "that the embedding or the loss stands for a layer");
  }
}

void refuse_model_parallelism(const Setup& setup, bool tensor) {
  const Parallelism& p = setup.parallel;
  if (p.tensor > 1 && !tensor) refuse("--tp", "tensor parallelism for this engine");
  if (p.sequence_parallel) refuse("--sequence-parallel", "sequence parallelism for this engine");
  if (p.pipeline > 1) refuse("--pp", "pipeline stages for this engine");
  if (p.expert > 1 || p.expert_tensor) refuse("--ep", "expert parallelism for this engine");
  if (p.last_stage_layers) refuse("--last-stage-layers", "how many layers the last stage has for this engine");
  if (p.schedule) refuse("--schedule", "a schedule of pipeline stages");
}

bool equal_dtypes(Policy a, Policy b) {
  a.name = b.name = "";
  return a == b;
}

// As the policy of that name, or as DeepSpeed settles it.
bool is_policy(const Policy& policy, const char* name) {
  Setup named;
  named.policy = policy_named(name);
  if (equal_dtypes(policy, named.policy)) return true;
  DeepSpeedOptions options;
  settle_deepspeed(named, options);
  return equal_dtypes(policy, named.policy);
}

// mixed_precision: the word whose policy this is.
const char* word_of(const Policy& policy, const char* fp16, const char* bf16) {
  if (is_policy(policy, "fp32")) return "no";
  if (is_policy(policy, fp16)) return "fp16";
  if (is_policy(policy, bf16)) return "bf16";
  refuse("--precision", fmt::format("{} for this engine: expected fp32, {} or {}", policy.name, fp16, bf16));
}

class File {
 public:
  File(const char* type, const char* precision, const Setup& setup, const EngineOptions& options) {
    const std::uint64_t ranks = total_ranks(setup);
    const bool nodes = ranks > options.gpus_per_node && ranks % options.gpus_per_node == 0;
    line("compute_environment", "LOCAL_MACHINE");
    line("distributed_type", fmt::format("'{}'", type));
    line("mixed_precision", fmt::format("'{}'", precision));
    line("num_processes", ranks);
    line("num_machines", nodes ? ranks / options.gpus_per_node : 1);
    line("machine_rank", 0);
  }
  template <typename T>
  void line(std::string_view key, const T& value) {
    text_ += fmt::format("{}{}: {}\n", indent_, key, value);
  }
  void section(std::string_view key) {
    text_ += fmt::format("{}:\n", key);
    indent_ = "  ";
  }
  std::string text() const { return text_; }

 private:
  std::string text_;
  std::string indent_;
};

void write_parallelism(File& file, const Setup& setup) {
  const Parallelism& p = setup.parallel;
  if (setup.replicate == 1 && p.tensor == 1 && p.context == 1) return;
  // Ranks on the context axis shard with those of the data axis.
  const std::uint64_t shard = shard_count(setup) / p.context;
  if (shard == 0 || shard * p.context != shard_count(setup)) {
    refuse("--replicate", "that a group that shards is no multiple of the context axis");
  }
  file.section("parallelism_config");
  file.line("parallelism_config_dp_replicate_size", setup.replicate);
  file.line("parallelism_config_dp_shard_size", shard);
  file.line("parallelism_config_tp_size", p.tensor);
  file.line("parallelism_config_cp_size", p.context);
}

std::string fsdp_text(const Setup& setup, const EngineOptions& all) {
  const Fsdp2Options& options = all.fsdp2;
  refuse_model_parallelism(setup, true);
  const char* precision = word_of(setup.policy, "fp16-mixed", "bf16-mixed");
  if (options.reduce_dtype && *options.reduce_dtype != setup.policy.wire) {
    refuse("--wire-dtype", "a dtype of the reduction that is not the parameters'");
  }
  if (!options.pin_memory) refuse("--offload", "offload without pinned memory");
  File file("FSDP", precision, setup, all);
  file.section("fsdp_config");
  file.line("fsdp_version", 2);
  file.line("fsdp_reshard_after_forward", options.reshard_after_forward.value_or(setup.stage == 3));
  file.line("fsdp_offload_params", options.offload);
  file.line("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP");
  file.line("fsdp_state_dict_type", "SHARDED_STATE_DICT");
  file.line("fsdp_activation_checkpointing", setup.recompute == Recompute::full);
  write_parallelism(file, setup);
  return file.text();
}

void write_device(File& file, const char* what, OffloadDevice device, const std::string& path) {
  file.line(fmt::format("offload_{}_device", what), device == OffloadDevice::cpu    ? "cpu"
                                                    : device == OffloadDevice::nvme ? "nvme"
                                                                                    : "none");
  if (device == OffloadDevice::nvme) file.line(fmt::format("offload_{}_nvme_path", what), yaml_scalar(path));
}

std::string deepspeed_text(const Setup& setup, const EngineOptions& all) {
  const DeepSpeedOptions& options = all.deepspeed;
  refuse_model_parallelism(setup, false);
  if (setup.parallel.context > 1) refuse("--cp", "context parallelism for this engine");
  if (setup.replicate > 1) refuse("--replicate", "that groups replicate: expected --export deepspeed");
  const char* precision = word_of(setup.policy, "fp16-mixed", "bf16-mixed");
  DeepSpeedOptions sayable;
  sayable.offload_optimizer.device = options.offload_optimizer.device;
  sayable.offload_optimizer.nvme_path = options.offload_optimizer.nvme_path;
  sayable.offload_param.device = options.offload_param.device;
  sayable.offload_param.nvme_path = options.offload_param.nvme_path;
  sayable.zero_init = options.zero_init;
  sayable.load_dtype = options.load_dtype;
  if (options != sayable) {
    refuse("--export",
           "buffers of deepspeed other than the usual: expected --export deepspeed, whose file "
           "deepspeed_config_file names");
  }
  File file("DEEPSPEED", precision, setup, all);
  file.section("deepspeed_config");
  file.line("zero_stage", setup.stage);
  write_device(file, "optimizer", options.offload_optimizer.device, options.offload_optimizer.nvme_path);
  write_device(file, "param", options.offload_param.device, options.offload_param.nvme_path);
  file.line("gradient_accumulation_steps", setup.accumulation);
  file.line("zero3_init_flag", options.zero_init);
  return file.text();
}

std::string megatron_text(const Setup& setup, const EngineOptions& all) {
  const MegatronOptions& options = all.megatron;
  const Parallelism& p = setup.parallel;
  if (setup.replicate > 1) refuse("--replicate", "that groups replicate for this engine");
  if (p.schedule) refuse("--schedule", "a schedule of pipeline stages");
  const char* precision = word_of(setup.policy, "fp16-mixed", "bf16-mixed-fp32grad");
  MegatronOptions sayable;
  sayable.use_distributed_optimizer = options.use_distributed_optimizer.value_or(setup.stage >= 1);
  sayable.use_megatron_fsdp = options.use_megatron_fsdp || setup.stage >= 2;
  if (sayable.use_megatron_fsdp) sayable.data_parallel_sharding_strategy = MegatronSharding::optim_grads_params;
  sayable.main_grads_dtype = setup.policy.gradient;
  sayable.use_precision_aware_optimizer = options.use_precision_aware_optimizer;
  sayable.optimizer_cpu_offload = options.optimizer_cpu_offload;
  MegatronOptions settled = options;
  settled.use_distributed_optimizer = sayable.use_distributed_optimizer;
  settled.use_megatron_fsdp = sayable.use_megatron_fsdp;
  if (sayable.use_megatron_fsdp && setup.stage == 3) {
    settled.data_parallel_sharding_strategy = MegatronSharding::optim_grads_params;
  }
  if (settled != sayable) refuse("--export", "these options of megatron: expected --export megatron");
  File file("MEGATRON_LM", precision, setup, all);
  file.section("megatron_lm_config");
  file.line("megatron_lm_tp_degree", p.tensor);
  file.line("megatron_lm_pp_degree", p.pipeline);
  file.line("megatron_lm_num_micro_batches", setup.accumulation);
  file.line("megatron_lm_sequence_parallelism", p.sequence_parallel);
  file.line("megatron_lm_use_distributed_optimizer", *sayable.use_distributed_optimizer);
  if (sayable.use_megatron_fsdp) file.line("megatron_lm_use_custom_fsdp", true);
  if (p.context > 1) file.line("megatron_lm_context_parallel_size", p.context);
  if (p.expert > 1) file.line("megatron_lm_expert_model_parallel_size", p.expert);
  if (p.expert_tensor) file.line("megatron_lm_expert_tensor_parallel_size", *p.expert_tensor);
  if (p.last_stage_layers) file.line("megatron_lm_decoder_last_pipeline_num_layers", *p.last_stage_layers);
  if (options.use_precision_aware_optimizer) file.line("megatron_lm_use_precision_aware_optimizer", true);
  if (options.optimizer_cpu_offload) file.line("megatron_lm_optimizer_cpu_offload", true);
  if (setup.recompute == Recompute::full) {
    file.line("megatron_lm_recompute_granularity", "full");
    file.line("megatron_lm_recompute_method", "uniform");
    file.line("megatron_lm_recompute_num_layers", 1);
  }
  return file.text();
}

std::string replicas_text(Engine engine, const Setup& setup, const EngineOptions& all) {
  refuse_model_parallelism(setup, false);
  if (engine != Engine::paper) {
    refuse("--engine", fmt::format("engine {}: expected fsdp2, deepspeed, megatron or paper", name(engine)));
  }
  if (setup.stage > 0) refuse("--zero", "how engine paper shards: expected --engine fsdp2 or deepspeed");
  if (setup.recompute == Recompute::full) refuse("--recompute", "recomputation without FSDP");
  if (setup.parallel.context > 1) refuse("--cp", "context parallelism without FSDP");
  const char* type = setup.world_size > 1 ? "MULTI_GPU" : "NO";
  return File(type, word_of(setup.policy, "amp-fp16", "amp-bf16"), setup, all).text();
}

}  // namespace

std::string accelerate_config_text(Engine engine, const Setup& setup, const EngineOptions& options) {
  refuse_what_cannot_be_said(setup);
  switch (engine) {
    case Engine::fsdp2:
      return fsdp_text(setup, options);
    case Engine::deepspeed:
      return deepspeed_text(setup, options);
    case Engine::megatron:
      return megatron_text(setup, options);
    case Engine::shardplan:
    case Engine::paper:
      break;
  }
  return replicas_text(engine, setup, options);
}

}  // namespace shardplan
