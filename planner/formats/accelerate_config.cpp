#include "planner/formats/accelerate_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "planner/formats/accelerate_section.h"
#include "planner/formats/ds_config.h"
#include "planner/formats/file.h"
#include "planner/formats/yaml.h"

namespace shardplan {
namespace {

using Section = AccelerateSection;

// The fields of ClusterConfig, and those that process_config takes from older files.
constexpr std::array<std::string_view, 34> kTop{"compute_environment",
                                                "distributed_type",
                                                "mixed_precision",
                                                "use_cpu",
                                                "debug",
                                                "num_processes",
                                                "machine_rank",
                                                "num_machines",
                                                "gpu_ids",
                                                "main_process_ip",
                                                "main_process_port",
                                                "rdzv_backend",
                                                "same_network",
                                                "main_training_function",
                                                "enable_cpu_affinity",
                                                "fp8_config",
                                                "deepspeed_config",
                                                "fsdp_config",
                                                "parallelism_config",
                                                "megatron_lm_config",
                                                "mpirun_config",
                                                "downcast_bf16",
                                                "tpu_name",
                                                "tpu_zone",
                                                "tpu_use_cluster",
                                                "tpu_use_sudo",
                                                "command_file",
                                                "commands",
                                                "tpu_vm",
                                                "tpu_env",
                                                "dynamo_config",
                                                "fp16",
                                                "dynamo_backend",
                                                "ipex_config"};
constexpr std::array<std::string_view, 17> kFsdp{"fsdp_version",
                                                 "fsdp_sharding_strategy",
                                                 "fsdp_reshard_after_forward",
                                                 "fsdp_offload_params",
                                                 "fsdp_auto_wrap_policy",
                                                 "fsdp_transformer_layer_cls_to_wrap",
                                                 "fsdp_min_num_params",
                                                 "fsdp_backward_prefetch",
                                                 "fsdp_backward_prefetch_policy",
                                                 "fsdp_forward_prefetch",
                                                 "fsdp_state_dict_type",
                                                 "fsdp_use_orig_params",
                                                 "fsdp_sync_module_states",
                                                 "fsdp_cpu_ram_efficient_loading",
                                                 "fsdp_activation_checkpointing",
                                                 "fsdp_ignored_modules",
                                                 "fsdp_limit_all_gathers"};
constexpr std::array<std::string_view, 15> kDeepSpeed{"deepspeed_config_file",
                                                      "zero_stage",
                                                      "offload_optimizer_device",
                                                      "offload_param_device",
                                                      "offload_optimizer_nvme_path",
                                                      "offload_param_nvme_path",
                                                      "gradient_accumulation_steps",
                                                      "gradient_clipping",
                                                      "zero3_init_flag",
                                                      "zero3_save_16bit_model",
                                                      "deepspeed_hostfile",
                                                      "deepspeed_exclusion_filter",
                                                      "deepspeed_inclusion_filter",
                                                      "deepspeed_multinode_launcher",
                                                      "deepspeed_moe_layer_cls_names"};
constexpr std::array<std::string_view, 11> kParallelism{
    "dp_replicate_size",     "dp_shard_size", "tp_size",    "cp_size",       "cp_backend",
    "cp_comm_strategy",      "sp_size",       "sp_backend", "sp_seq_length", "sp_seq_length_is_variable",
    "sp_attn_implementation"};
constexpr std::array<std::string_view, 25> kMegatron{"megatron_lm_tp_degree",
                                                     "megatron_lm_pp_degree",
                                                     "megatron_lm_num_micro_batches",
                                                     "megatron_lm_sequence_parallelism",
                                                     "megatron_lm_recompute_activations",
                                                     "megatron_lm_use_distributed_optimizer",
                                                     "megatron_lm_gradient_clipping",
                                                     "megatron_lm_use_custom_fsdp",
                                                     "megatron_lm_optimizer_cpu_offload",
                                                     "megatron_lm_use_precision_aware_optimizer",
                                                     "megatron_lm_decoder_last_pipeline_num_layers",
                                                     "megatron_lm_recompute_granularity",
                                                     "megatron_lm_recompute_method",
                                                     "megatron_lm_recompute_num_layers",
                                                     "megatron_lm_expert_model_parallel_size",
                                                     "megatron_lm_context_parallel_size",
                                                     "megatron_lm_expert_tensor_parallel_size",
                                                     "megatron_lm_no_load_optim",
                                                     "megatron_lm_eod_mask_loss",
                                                     "megatron_lm_no_save_optim",
                                                     "megatron_lm_overlap_cpu_optimizer_d2h_h2d",
                                                     "megatron_lm_attention_backend",
                                                     "megatron_lm_attention_dropout",
                                                     "megatron_lm_hidden_dropout",
                                                     "megatron_lm_calculate_per_token_loss"};

void refuse_unknown(JsonView root) {
  for (const JsonView member : root.members()) {
    if (std::find(kTop.begin(), kTop.end(), member.key()) != kTop.end()) continue;
    member.fail(fmt::format("is not a key of accelerate: the nearest is {}", nearest_name(member.key(), kTop)));
  }
}

// no, fp16, bf16, fp8.
Saying<std::string> mixed_precision(JsonView root) {
  const Section top(root, "");
  const JsonView value = root["mixed_precision"];
  // YAML 1.1 reads a bare no as false.
  if (value.exists() && value.shown() == "false") return said<std::string>("no", value.path());
  Saying<std::string> word = top.word("mixed_precision", {"no", "fp16", "bf16", "fp8"});
  if (!word && top.is_set("fp16")) word = said<std::string>("fp16", "fp16");
  return word;
}

void read_world(const Section& top, TrainingConfig& config) {
  const auto processes = top.find("num_processes");
  if (processes && !processes->is_minus_one()) config.world_size = top.count("num_processes");
  const Saying<std::uint64_t> machines = top.count("num_machines");
  if (!config.world_size || !machines || machines->value == 1) return;
  if (config.world_size->value % machines->value != 0) {
    throw ConfigError(
        config.source, machines->key,
        fmt::format("{} machines do not share out the {} processes", machines->value, config.world_size->value));
  }
  config.gpus_per_node = said(config.world_size->value / machines->value, machines->key);
}

void read_parallelism(JsonView root, TrainingConfig& config) {
  const Section section(root["parallelism_config"], "parallelism_config_");
  section.note_unknown(kParallelism, config.notes);
  const Saying<std::uint64_t> replicate = section.count("dp_replicate_size");
  const Saying<std::uint64_t> shard = section.count("dp_shard_size");
  const Saying<std::uint64_t> tensor = section.count("tp_size");
  const Saying<std::uint64_t> context = section.count("cp_size");
  const Saying<std::uint64_t> sequence = section.count("sp_size");
  const auto value = [](const Saying<std::uint64_t>& size) { return size ? size->value : 1; };
  if (value(context) > 1 && value(sequence) > 1) {
    throw ConfigError(config.source, sequence->key, "excludes cp_size: both split the sequence");
  }
  if (tensor) config.tensor = tensor;
  if (context) config.context = context;
  if (value(sequence) > 1) config.context = sequence;
  if (replicate && replicate->value > 1) config.replicate = replicate;
  if (!replicate && !shard) return;
  const std::uint64_t all = checked_multiply(checked_multiply(value(replicate), value(shard)),
                                             checked_multiply(value(tensor), value(context)));
  if (config.world_size && value(sequence) == 1 && all != config.world_size->value) {
    throw ConfigError(
        config.source, (shard ? shard : replicate)->key,
        fmt::format("dp_replicate x dp_shard x tp x cp is {}, but num_processes is {}", all, config.world_size->value));
  }
}

void set_stage(TrainingConfig& config, int stage, const std::string& key) {
  config.stage = said(stage, key);
}

// Without FSDP nothing is sharded.
void read_replicas(const Saying<std::string>& precision, const std::string& key, TrainingConfig& config) {
  config.engine = said(Engine::paper, key);
  set_stage(config, 0, key);
  config.replicate.reset();
  if (precision && precision->value != "no") {
    config.precision = said<std::string>(precision->value == "fp16" ? "amp-fp16" : "amp-bf16", precision->key);
  } else {
    config.precision = said<std::string>("fp32", precision ? precision->key : "mixed_precision");
  }
  config.notes.push_back(
      fmt::format("{}: DistributedDataParallel is planned by the textbook, without its buckets", key));
}

// FullyShardedDataParallelPlugin: version 1 has five strategies, by name or by number from 1.
std::string strategy_of(const Section& section, std::string& key) {
  static constexpr std::array<const char*, 5> names{"full_shard", "shard_grad_op", "no_shard", "hybrid_shard",
                                                    "hybrid_shard_zero2"};
  for (const char* name : {"fsdp_sharding_strategy", "fsdp_reshard_after_forward"}) {
    const auto value = section.find(name);
    if (!value) continue;
    key = value->path();
    if (!value->is_string()) return names[value->as_positive(names.size()) - 1];
    const std::string word = section
                                 .word(name, {"FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD",
                                              "HYBRID_SHARD_ZERO2", "1", "2", "3", "4", "5"})
                                 ->value;
    return word.size() > 1 ? word : names[static_cast<std::size_t>(word[0] - '1')];
  }
  key = section.path("fsdp_sharding_strategy");
  return names[0];
}

void read_fsdp(JsonView root, const Saying<std::string>& precision, TrainingConfig& config) {
  const Section section(root["fsdp_config"], "fsdp_");
  section.note_unknown(kFsdp, config.notes);
  const Saying<std::uint64_t> version = section.count("fsdp_version");
  if (version && version->value > 2) throw ConfigError(config.source, version->key, "expected 1 or 2");
  std::string key;
  bool reshard = true;
  if (version && version->value == 2) {
    const Saying<bool> said_reshard = section.flag("fsdp_reshard_after_forward");
    key = said_reshard ? said_reshard->key : version->key;
    reshard = !said_reshard || said_reshard->value;
  } else {
    const std::string strategy = strategy_of(section, key);
    if (strategy == "no_shard") return read_replicas(precision, key, config);
    reshard = strategy == "full_shard" || strategy == "hybrid_shard";
    if (strategy.starts_with("hybrid")) config.shard_in_node = said(true, key);
    config.notes.emplace_back("fsdp_config: version 1 is planned as version 2, which splits each parameter on dim 0");
  }
  config.engine = said(Engine::fsdp2, "distributed_type");
  set_stage(config, reshard ? 3 : 2, key);
  Fsdp2Options& options = config.fsdp2.emplace();
  options.reshard_after_forward = reshard;
  options.offload = section.is_set("fsdp_offload_params");
  if (options.offload) config.engine_keys["--offload"] = section.path("fsdp_offload_params");
  const Saying<bool> checkpointing = section.flag("fsdp_activation_checkpointing");
  if (checkpointing && checkpointing->value) config.recompute = said(Recompute::full, checkpointing->key);
  const std::string word = precision ? precision->value : "no";
  config.precision = said<std::string>(word == "no"     ? "fp32"
                                       : word == "fp16" ? "fp16-mixed"
                                                        : "bf16-mixed",
                                       precision ? precision->key : "mixed_precision");
  if (word == "fp8") config.notes.emplace_back("mixed_precision fp8: planned as bf16, without the fp8 copies");
}

std::string beside(const std::string& file, const std::string& path) {
  const std::size_t slash = file.rfind('/');
  return path.starts_with('/') || slash == std::string::npos ? path : file.substr(0, slash + 1) + path;
}

std::string quoted_json(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    json += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return json + '"';
}

// What DeepSpeedPlugin.__post_init__ makes of the keys.
std::string ds_config_of(const Section& section, const std::string& precision) {
  const Saying<std::uint64_t> stage = section.count("zero_stage", 0);
  if (stage && stage->value > 3) section.find("zero_stage")->fail_expected("0 to 3");
  std::string zero = fmt::format("\"stage\": {}", stage ? stage->value : 2);
  for (const char* what : {"optimizer", "param"}) {
    const auto device = section.word(fmt::format("offload_{}_device", what), {"none", "cpu", "nvme"});
    if (!device || device->value == "none") continue;
    const auto path = section.text(fmt::format("offload_{}_nvme_path", what));
    zero += fmt::format(R"(, "offload_{}": {{"device": "{}"{}}})", what, device->value,
                        path && device->value == "nvme" ? ", \"nvme_path\": " + quoted_json(path->value) : "");
  }
  const Saying<std::uint64_t> steps = section.count("gradient_accumulation_steps");
  std::string json = fmt::format("{{\"zero_optimization\": {{{}}}", zero);
  if (steps) json += fmt::format(", \"gradient_accumulation_steps\": {}", steps->value);
  if (precision == "bf16" || precision == "fp8") json += R"(, "bf16": {"enabled": true})";
  if (precision == "fp16") json += R"(, "fp16": {"enabled": true})";
  return json + "}";
}

// Keys of DeepSpeed's own, told as those of the YAML.
template <typename T>
void rename(Saying<T>& said, const Section& section, std::string_view key) {
  if (said) said->key = section.path(key);
}

bool says_precision(JsonView root) {
  return std::any_of(root.members().begin(), root.members().end(), [](JsonView member) {
    return member.key() == "bf16" || member.key() == "bfloat16" || member.key() == "fp16";
  });
}

void read_deepspeed(JsonView root, const Saying<std::string>& precision, TrainingConfig& config) {
  const Section section(root["deepspeed_config"], "deepspeed_");
  section.note_unknown(kDeepSpeed, config.notes);
  const std::string word = precision ? precision->value : "no";
  const Saying<std::string> file = section.text("deepspeed_config_file");
  TrainingConfig read;
  if (file && file->value != "none") {
    const std::string path = beside(config.source, file->value);
    const JsonDocument document(read_text(path), path);
    read = ds_config(document.root());
    if (word != "no" && !says_precision(document.root())) {
      read.precision = said<std::string>(word == "fp16" ? "fp16-mixed" : "bf16-mixed", precision->key);
    }
  } else {
    read = ds_config(ds_config_of(section, word), config.source);
    rename(read.stage, section, "zero_stage");
    rename(read.accumulation, section, "gradient_accumulation_steps");
    if (read.precision) read.precision->key = precision ? precision->key : "mixed_precision";
    for (auto& [flag, key] : read.engine_keys)
      key = section.path(flag == "--offload" ? "offload_optimizer_device" : key);
    read.source = config.source;
  }
  // zero3_init_flag absent: DeepSpeedPlugin takes it as set at stage 3.
  const Saying<bool> init = section.flag("zero3_init_flag");
  const bool stage3 = read.stage && read.stage->value == 3;
  if (read.deepspeed) read.deepspeed->zero_init = stage3 && (!init || init->value);
  read.engine = said(Engine::deepspeed, "distributed_type");
  read.notes.insert(read.notes.begin(), config.notes.begin(), config.notes.end());
  read.world_size = config.world_size;
  read.gpus_per_node = config.gpus_per_node;
  if (config.context) read.context = config.context;
  config = std::move(read);
}

void read_megatron(JsonView root, const Saying<std::string>& precision, TrainingConfig& config) {
  const Section section(root["megatron_lm_config"], "megatron_lm_");
  section.note_unknown(kMegatron, config.notes);
  config.engine = said(Engine::megatron, "distributed_type");
  MegatronOptions& options = config.megatron.emplace();
  const Saying<bool> distributed = section.flag("use_distributed_optimizer");
  options.use_distributed_optimizer = distributed && distributed->value;
  options.use_megatron_fsdp = section.is_set("use_custom_fsdp");
  set_stage(config, *options.use_distributed_optimizer ? 1 : 0, section.path("megatron_lm_use_distributed_optimizer"));
  if (options.use_megatron_fsdp) {
    options.use_distributed_optimizer = true;
    options.data_parallel_sharding_strategy = MegatronSharding::optim_grads_params;
    set_stage(config, 3, section.path("megatron_lm_use_custom_fsdp"));
  }
  options.use_precision_aware_optimizer = section.is_set("use_precision_aware_optimizer");
  options.optimizer_cpu_offload = section.is_set("optimizer_cpu_offload");
  config.tensor = section.count("tp_degree");
  config.pipeline = section.count("pp_degree");
  config.context = section.count("context_parallel_size");
  config.expert = section.count("expert_model_parallel_size");
  config.expert_tensor = section.count("expert_tensor_parallel_size");
  config.last_stage_layers = section.count("decoder_last_pipeline_num_layers");
  config.accumulation = section.count("num_micro_batches");
  const Saying<bool> sequence = section.flag("sequence_parallelism");
  if (sequence && sequence->value && config.tensor && config.tensor->value > 1) config.sequence_parallel = sequence;
  const auto granularity = section.word("recompute_granularity", {"full", "selective"});
  if (granularity && granularity->value == "full") config.recompute = said(Recompute::full, granularity->key);
  if (section.is_set("recompute_activations") || (granularity && granularity->value == "selective")) {
    config.notes.emplace_back("megatron_lm_config: selective recomputation changes activations and is not counted");
  }
  const std::string word = precision ? precision->value : "no";
  const std::string key = precision ? precision->key : "mixed_precision";
  options.main_grads_dtype = word == "fp16" ? DType::f16 : DType::f32;
  config.precision = said<std::string>(word == "no"     ? "fp32"
                                       : word == "fp16" ? "fp16-mixed"
                                                        : "bf16-mixed-fp32grad",
                                       key);
}

}  // namespace

TrainingConfig accelerate_config(std::string_view text, const std::string& source) {
  const JsonDocument document = json_from_json_or_yaml(text, source);
  const JsonView root = document.root();
  if (!root.is_object()) root.fail_expected("a map with accelerate's keys");
  const Section top(root, "");
  const auto environment = top.word("compute_environment", {"LOCAL_MACHINE", "AMAZON_SAGEMAKER"});
  if (environment && environment->value != "local_machine") {
    throw ConfigError(source, environment->key, "expected LOCAL_MACHINE: what SageMaker launches is not read");
  }
  refuse_unknown(root);
  // A bare NO is false to YAML 1.1, and to PyYAML.
  const JsonView type = root["distributed_type"];
  const bool no = type.exists() && type.shown() == "false";
  const auto kind = no ? said<std::string>("no", type.path())
                       : top.word("distributed_type", {"NO", "MULTI_GPU", "FSDP", "DEEPSPEED", "MEGATRON_LM"});
  if (!kind) type.fail_expected("one of NO, MULTI_GPU, FSDP, DEEPSPEED, MEGATRON_LM");
  TrainingConfig config;
  config.source = source;
  read_world(top, config);
  if (kind->value == "no" && !config.world_size) config.world_size = said<std::uint64_t>(1, kind->key);
  read_parallelism(root, config);
  const Saying<std::string> precision = mixed_precision(root);
  if (kind->value == "fsdp") {
    read_fsdp(root, precision, config);
  } else if (kind->value == "deepspeed") {
    read_deepspeed(root, precision, config);
  } else if (kind->value == "megatron_lm") {
    read_megatron(root, precision, config);
  } else {
    read_replicas(precision, kind->key, config);
  }
  return config;
}

TrainingConfig accelerate_config_in_file(const std::string& path) {
  return accelerate_config(read_text(path), path);
}

}  // namespace shardplan
