#include "planner/formats/megatron_args.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "planner/formats/countable.h"
#include "planner/formats/file.h"
#include "planner/formats/megatron_arguments.h"
#include "planner/formats/megatron_client.h"
#include "planner/formats/megatron_sizes.h"
#include "planner/formats/near_names.h"
#include "planner/formats/yaml.h"

namespace shardplan {
namespace {

using Arguments = MegatronArguments;
using Notes = std::vector<std::string>;

constexpr std::uint64_t kMostRanks = 1'000'000;

// Change memory, and no part of the plan knows them.
constexpr std::string_view kNotCounted =
    " "
    "cpu-offloading-num-layers cuda-graph-impl cuda-graph-modules "
    "cuda-graph-scope defer-embedding-wgrad-compute distribute-saved-activations enable-cuda-graph "
    "expert-tensor-parallel-num-weight-shards fine-grained-activation-offloading fp4-format fp4-param-gather "
    "heterogeneous-layers-config-path mamba-int-list moe-expert-int-list nccl-ub "
    "overlap-moe-expert-parallel-comm reuse-grad-buf-for-mxfp8-param-ag "
    "tensor-parallel-num-weight-shards ";

// Decide no bytes that are planned: by name, and by how they begin.
constexpr std::string_view kNoBytes =
    " "
    "adaptive-muon-beta2 apply-layernorm-1p apply-query-key-layer-scaling async-save "
    "auto-detect-ckpt-format bert-embedder-type bias-swiglu-fusion calculate-per-token-loss "
    "check-for-nan-in-loss-and-grad clip-grad cp-comm-type cross-entropy-fusion-impl dataloader-type "
    "ddp-average-in-collective decoupled-lr decoupled-min-lr deterministic-mode "
    "disable-straggler-on-startup distributed-backend distributed-timeout-minutes "
    "empty-unused-memory-level encoder-seq-length end-weight-decay eod-mask-loss finetune fp8-margin "
    "fp8-recipe hidden-dropout initial-loss-scale is-hybrid-model load lr mask-prob merge-file min-lr "
    "mock-data moe-aux-loss-coeff moe-input-jitter-eps moe-per-layer-logging moe-permute-fusion "
    "moe-router-bias-update-rate moe-router-dtype moe-router-force-load-balancing moe-router-fusion "
    "moe-router-group-topk moe-router-load-balancing-type moe-router-num-groups moe-router-pre-softmax "
    "moe-router-score-function moe-router-topk-scaling-factor moe-shared-expert-overlap "
    "moe-token-dispatcher-type moe-z-loss-coeff mrope-section mscale mtp-loss-scaling-factor "
    "no-check-for-nan-in-loss-and-grad no-create-attention-mask-in-dataloader "
    "no-gradient-accumulation-fusion no-masked-softmax-fusion no-mmap-bin-files no-rope-fusion "
    "norm-epsilon num-workers overlap-param-gather overlap-param-gather-with-optimizer-step "
    "override-opt-param-scheduler seed sgd-momentum split start-weight-decay te-rng-tracker "
    "tokenizer-model tp-comm-overlap-cfg train-data-path train-iters train-samples use-mcore-models "
    "use-persistent-ckpt-worker use-rope-scaling use-tp-pp-dp-mapping vocab-file weight-decay ";
constexpr std::string_view kNoBytesPrefixes =
    "adam- attention- ckpt- data- dist- eval- exit- fp8-amax- init-method- layernorm- log- loss-scale lr- "
    "manual-gc mmap- muon- no-bias- no-load- no-save- profile rerun- rotary- save tensorboard- timing- "
    "use-checkpoint- wandb- ";

bool has(std::string_view words, std::string_view word) {
  return words.find(fmt::format(" {} ", word)) != std::string_view::npos;
}

bool decides_no_bytes(std::string_view name) {
  if (has(kNoBytes, name)) return true;
  for (std::size_t begin = 0; begin < kNoBytesPrefixes.size();) {
    const std::size_t end = kNoBytesPrefixes.find(' ', begin);
    if (name.starts_with(kNoBytesPrefixes.substr(begin, end - begin))) return true;
    begin = end + 1;
  }
  return false;
}

void add_unused(const Arguments& arguments, Notes& notes) {
  Notes no_bytes;
  for (const std::string& name : arguments.unused()) {
    if (has(kNotCounted, name)) {
      notes.push_back(fmt::format("{} changes memory and is not counted", name));
    } else if (decides_no_bytes(name)) {
      no_bytes.push_back(name);
    } else {
      notes.push_back(fmt::format("{} is not known here and not used", name));
    }
  }
  if (!no_bytes.empty()) notes.push_back(fmt::format("arguments that decide no bytes: {}", fmt::join(no_bytes, ", ")));
}

Saying<std::uint64_t> said_count(Arguments& a, std::string_view name, std::uint64_t largest = kMostRanks) {
  const auto value = a.positive(name, largest);
  return value ? Saying<std::uint64_t>(said(*value, a.key(name))) : std::nullopt;
}

Saying<bool> said_flag(Arguments& a, std::string_view name) {
  return a.flag(name) ? Saying<bool>(said(true, a.key(name))) : std::nullopt;
}

void read_virtual_stages(Arguments& a, const MegatronSizes& sizes, TrainingConfig& config) {
  constexpr const char* kLayers = "num-layers-per-virtual-pipeline-stage";
  constexpr const char* kStages = "num-virtual-stages-per-pipeline-rank";
  config.virtual_stages = said_count(a, kStages);
  const auto layers = a.positive(kLayers);
  if (!layers) return;
  if (config.virtual_stages) a.fail(kLayers, fmt::format("excludes {}", kStages));
  const std::uint64_t stages = config.pipeline ? config.pipeline->value : 1;
  const std::uint64_t counted =
      sizes.layers + (config.embedding_is_a_layer ? 1U : 0U) + (config.loss_is_a_layer ? 1U : 0U);
  if (counted % stages != 0 || counted / stages % *layers != 0) {
    a.fail_expected(kLayers, fmt::format("a divisor of the layers of one of {} stages, {} in all", stages, counted));
  }
  config.virtual_stages = said(counted / stages / *layers, a.key(kLayers));
}

// Pieces in the order of the model: as many on each rank as there are pieces for each stage (training/arguments.py,
// validate_args: virtual_pipeline_model_parallel_size).
void read_layout(Arguments& a, TrainingConfig& config) {
  constexpr const char* kLayout = "pipeline-model-parallel-layout";
  const auto text = a.text(kLayout);
  if (!text) return;
  if (config.virtual_stages) a.fail(kLayout, "excludes other ways to say virtual stages");
  PipelineLayout layout;
  try {
    layout = parse_pipeline_layout(*text);
  } catch (const ConfigError& error) {
    a.fail(kLayout, error.problem());
  }
  const std::size_t pieces = layout.decoder_layers.size();
  const std::uint64_t stages = config.pipeline ? config.pipeline->value : 1;
  if (stages < 2 || pieces % stages != 0) {
    a.fail_expected(kLayout, fmt::format("pieces for each of {} stages, found {}", stages, pieces));
  }
  for (std::size_t piece = 0; piece + 1 < pieces; ++piece) {
    if (layout.multi_token_layers[piece] > 0) {
      a.fail(kLayout,
             "layers of multi-token prediction (m) are counted with the loss: expected them in the last piece");
    }
  }
  config.virtual_stages = said(pieces / stages, a.key(kLayout));
  config.piece_layers = said(std::move(layout.decoder_layers), a.key(kLayout));
}

void read_parallelism(Arguments& a, const MegatronSizes& sizes, TrainingConfig& config) {
  config.tensor = said_count(a, "tensor-model-parallel-size");
  config.pipeline = said_count(a, "pipeline-model-parallel-size");
  config.context = said_count(a, "context-parallel-size");
  config.expert = said_count(a, "expert-model-parallel-size");
  config.expert_tensor = said_count(a, "expert-tensor-parallel-size");
  // Without experts there is nothing to be apart.
  if (!sizes.experts) config.expert = config.expert_tensor = std::nullopt;
  config.sequence_parallel = said_flag(a, "sequence-parallel");
  // validate_args: nothing to split without tensor parallelism.
  if (!config.tensor || config.tensor->value == 1) config.sequence_parallel = std::nullopt;
  config.first_stage_layers = said_count(a, "decoder-first-pipeline-num-layers");
  config.last_stage_layers = said_count(a, "decoder-last-pipeline-num-layers");
  config.embedding_is_a_layer = said_flag(a, "account-for-embedding-in-pipeline-split");
  config.loss_is_a_layer = said_flag(a, "account-for-loss-in-pipeline-split");
  read_virtual_stages(a, sizes, config);
  read_layout(a, config);
  if (sizes.kind == MegatronKind::t5 && config.pipeline && config.pipeline->value > 1) {
    a.fail("pipeline-model-parallel-size", "T5 has no pipeline: expected 1");
  }
  const auto multiple = a.positive("make-vocab-size-divisible-by");
  const bool padded = a.given("padded-vocab-size");
  config.vocabulary_multiple = said(padded ? 1 : multiple.value_or(128), a.key("make-vocab-size-divisible-by"));
}

void read_batch(Arguments& a, TrainingConfig& config) {
  constexpr std::uint64_t kLargest = Arguments::kLargestSize;
  config.micro_batch = said_count(a, "micro-batch-size", kLargest);
  config.global_batch = said_count(a, "global-batch-size", kLargest);
  config.sequence = said_count(a, "seq-length", kLargest);
  if (!config.sequence) config.sequence = said_count(a, "encoder-seq-length", kLargest);
  if (a.given("rampup-batch-size")) config.notes.emplace_back("rampup-batch-size: the last size of a step is planned");
  a.given("decoder-seq-length");
}

// validate_args on accumulate_allreduce_grads_in_fp32; core/distributed/distributed_data_parallel.py takes the
// parameters' dtype where gradients are not reduced in fp32.
void read_precision(Arguments& a, TrainingConfig& config, MegatronOptions& options) {
  const bool bf16 = a.flag("bf16");
  const bool fp16 = a.flag("fp16");
  if (bf16 && fp16) a.fail("fp16", "excludes bf16");
  const bool fp8 = !a.word_or("fp8-format", "", {"e4m3", "hybrid"}).empty();
  const bool in_bf16 = a.flag("grad-reduce-in-bf16");
  const bool in_fp32 = a.flag("accumulate-allreduce-grads-in-fp32");
  const DType main = a.dtype_or("main-grads-dtype", DType::f32, {"fp32", "bf16"});
  const bool whole = bf16 ? !in_bf16 && (in_fp32 || main == DType::f32) : in_fp32 || !fp16;
  options.main_grads_dtype = whole ? DType::f32 : bf16 ? DType::bf16 : DType::f16;
  const char* name = bf16 ? (whole ? "bf16-mixed-fp32grad" : "bf16-mixed") : fp16 ? "fp16-mixed" : "fp32";
  const bool copies = fp8 && bf16 && whole && !a.flag("fp8-param-gather");
  config.precision = said<std::string>(copies ? "fp8-mixed" : name, a.key(bf16 ? "bf16" : "fp16"));
  if (fp8 && !copies) config.dtypes.compute = said(DType::f8_e4m3, a.key("fp8-format"));
  if (fp16 && whole) {
    const std::string key = a.key("accumulate-allreduce-grads-in-fp32");
    config.dtypes.gradient = config.dtypes.wire = said(DType::f32, key);
  }
}

void read_optimizer(Arguments& a, TrainingConfig& config, MegatronOptions& options) {
  constexpr const char* kName = "optimizer";
  const std::string word =
      a.word_or(kName, "adam", {"adam", "sgd", "muon", "dist_muon", "lion", "soap", "adaptive_muon"});
  const OptimizerKind kind = word == "sgd"    ? OptimizerKind::sgd_momentum
                             : word == "lion" ? OptimizerKind::lion
                             : word == "adam" ? OptimizerKind::adamw
                                              : OptimizerKind::muon;
  if (word == "soap") a.fail_expected(kName, "adam, sgd, lion or muon: the states of soap are not known");
  config.optimizer = said(kind, a.key(kName));
  const bool precise = a.flag("use-precision-aware-optimizer");
  options.use_precision_aware_optimizer = precise;
  options.main_params_dtype = a.dtype_or("main-params-dtype", DType::f32, {"fp32", "fp16"});
  options.exp_avg_dtype = a.dtype_or("exp-avg-dtype", DType::f32, {"fp32", "fp16", "bf16", "fp8"});
  options.exp_avg_sq_dtype = a.dtype_or("exp-avg-sq-dtype", DType::f32, {"fp32", "fp16", "bf16", "fp8"});
  options.optimizer_cpu_offload = a.flag("optimizer-cpu-offload");
  options.optimizer_offload_fraction = a.fraction_or("optimizer-offload-fraction", 1.0);
  if (options.optimizer_cpu_offload && !precise) a.fail("optimizer-cpu-offload", "needs use-precision-aware-optimizer");
  const bool emerging = word != "adam" && word != "sgd";
  if (!emerging || !options.use_distributed_optimizer.value_or(false)) return;
  // validate_args: whole tensors go to ranks instead.
  options.use_distributed_optimizer = false;
  config.stage = said(0, a.key("use-distributed-optimizer"));
  config.notes.push_back(
      fmt::format("optimizer {} with use-distributed-optimizer gives whole tensors to ranks: states "
                  "are planned as if every rank had all",
                  word));
}

int stage_of(MegatronSharding sharding) {
  switch (sharding) {
    case MegatronSharding::no_shard:
      return 0;
    case MegatronSharding::optim:
      return 1;
    case MegatronSharding::optim_grads:
      return 2;
    case MegatronSharding::optim_grads_params:
      return 3;
  }
  return 0;
}

void read_sharding(Arguments& a, TrainingConfig& config, MegatronOptions& options) {
  constexpr const char* kDistributed = "use-distributed-optimizer";
  constexpr const char* kStrategy = "data-parallel-sharding-strategy";
  const bool distributed = a.flag(kDistributed);
  options.use_megatron_fsdp = a.flag("use-megatron-fsdp") || a.flag("use-custom-fsdp");
  const std::string strategy =
      a.word_or(kStrategy, "optim_grads_params", {"no_shard", "optim", "optim_grads", "optim_grads_params"});
  options.use_distributed_optimizer = distributed || options.use_megatron_fsdp;
  config.stage = said(distributed ? 1 : 0, a.key(kDistributed));
  if (options.use_megatron_fsdp) {
    options.data_parallel_sharding_strategy = strategy == "no_shard"      ? MegatronSharding::no_shard
                                              : strategy == "optim"       ? MegatronSharding::optim
                                              : strategy == "optim_grads" ? MegatronSharding::optim_grads
                                                                          : MegatronSharding::optim_grads_params;
    config.stage = said(stage_of(*options.data_parallel_sharding_strategy), a.key(kStrategy));
  }
  options.num_distributed_optimizer_instances = a.positive_or("num-distributed-optimizer-instances", 1, kMostRanks);
  options.overlap_grad_reduce = a.flag("overlap-grad-reduce");
  options.fsdp_double_buffer = a.flag("fsdp-double-buffer");
  options.suggested_communication_unit_size = a.positive("suggested-communication-unit-size", UINT64_MAX);
  options.ddp_bucket_size = a.positive("ddp-bucket-size", UINT64_MAX);
  options.pad_buckets_for_high_nccl_busbw = a.flag("ddp-pad-buckets-for-high-nccl-busbw");
}

void read_engine(Arguments& a, TrainingConfig& config) {
  constexpr const char* kTorch = "use-torch-fsdp2";
  const bool kept = a.flag("torch-fsdp2-no-reshard-after-forward");
  if (!a.flag(kTorch)) {
    config.engine = said(Engine::megatron, std::string());
    return;
  }
  if (config.megatron->use_distributed_optimizer.value_or(false)) a.fail(kTorch, "excludes use-distributed-optimizer");
  config.engine = said(Engine::fsdp2, a.key(kTorch));
  config.stage = said(kept ? 2 : 3, a.key(kTorch));
  config.fsdp2.emplace().reshard_after_forward = !kept;
}

// How, and of which modules, is the client's (megatron_client.h).
void read_recompute(Arguments& a, TrainingConfig& config) {
  constexpr const char* kName = "recompute-granularity";
  const std::string word = a.word_or(kName, a.flag("recompute-activations") ? "selective" : "", {"full", "selective"});
  if (word == "full") config.recompute = said(Recompute::full, a.key(kName));
}

// The parts of a file.
struct Parts {
  JsonView arguments;
  std::optional<JsonView> environment;
  std::string script;
  Saying<std::uint64_t> world_size;
  Notes notes;
};

Saying<std::uint64_t> said_rank_count(JsonView value) {
  if (!value.exists() || value.is_null()) return std::nullopt;
  if (!value.is_string()) return said(value.as_positive(kMostRanks), value.path());
  const std::string text(value.as_string());
  const bool digits = !text.empty() && text.size() < 8 &&
                      std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  const std::uint64_t count = digits ? std::stoull(text) : 0;
  if (count == 0 || count > kMostRanks) value.fail_expected("a positive integer");
  return said(count, value.path());
}

Parts parts_of(JsonView root) {
  if (!root.is_object()) root.fail_expected("a map of Megatron's arguments");
  for (const auto& [arguments, environment] : {std::pair{"args", "env"}, std::pair{"MODEL_ARGS", "ENV_VARS"}}) {
    if (!root[arguments].exists()) continue;
    Parts parts{.arguments = root[arguments], .environment = {}, .script = {}, .world_size = {}, .notes = {}};
    const JsonView env = root[environment];
    if (env.exists() && !env.is_null()) {
      if (!env.is_object()) env.fail_expected("a map");
      parts.environment = env;
    }
    if (root["script"].exists()) parts.script = root["script"].as_string();
    parts.world_size = said_rank_count(root["world_size"]);
    return parts;
  }
  return {.arguments = root, .environment = {}, .script = {}, .world_size = {}, .notes = {}};
}

void read_world(const Parts& parts, TrainingConfig& config) {
  config.world_size = parts.world_size;
  if (!parts.environment) return;
  const auto from_environment = said_rank_count((*parts.environment)["WORLD_SIZE"]);
  if (config.world_size && from_environment && config.world_size->value != from_environment->value) {
    throw ConfigError(
        config.source, from_environment->key,
        fmt::format("is {}, but {} is {}", from_environment->value, config.world_size->key, config.world_size->value));
  }
  if (!config.world_size) config.world_size = from_environment;
  config.gpus_per_node = said_rank_count((*parts.environment)["LOCAL_WORLD_SIZE"]);
}

MegatronEnvironment read_environment(const std::optional<JsonView>& environment) {
  MegatronEnvironment said;
  if (!environment) return said;
  if (const JsonView cublas = (*environment)["CUBLAS_WORKSPACE_CONFIG"]; cublas.exists() && !cublas.is_null()) {
    said.cublas_workspace_config = cublas.as_string();
  }
  if (const JsonView torch = (*environment)["PYTORCH_CUDA_ALLOC_CONF"]; torch.exists() && !torch.is_null()) {
    said.expandable_segments = torch.as_string().find("expandable_segments:True") != std::string_view::npos;
  }
  return said;
}

std::string last_name(std::string_view script) {
  const std::size_t slash = script.rfind('/');
  return std::string(slash == std::string_view::npos ? script : script.substr(slash + 1));
}

}  // namespace

MegatronRun read_megatron_args(JsonView root) {
  Parts parts = parts_of(root);
  Arguments arguments(parts.arguments);
  MegatronRun run;
  TrainingConfig& config = run.config;
  config.source = root.source();
  run.sizes = read_megatron_sizes(arguments, last_name(parts.script), config.notes);
  MegatronOptions& options = config.megatron.emplace();
  read_world(parts, config);
  read_parallelism(arguments, run.sizes, config);
  read_batch(arguments, config);
  read_precision(arguments, config, options);
  read_sharding(arguments, config, options);
  read_optimizer(arguments, config, options);
  read_engine(arguments, config);
  read_recompute(arguments, config);
  run.client = read_megatron_client(arguments, parts.environment, run.sizes);
  run.environment = read_environment(parts.environment);
  add_unused(arguments, config.notes);
  try {
    run.model = megatron_model(last_part(root.source()), run.sizes);
    require_countable(run.model.catalog, root.source());
  } catch (const ArithmeticOverflow& error) {
    throw ConfigError(root.source(), arguments.key("hidden-size"),
                      fmt::format("makes a model too large: {}", error.what()));
  }
  return run;
}

MegatronRun read_megatron_args(std::string_view text, const std::string& source) {
  const JsonDocument document = json_from_json_or_yaml(text, source);
  return read_megatron_args(document.root());
}

MegatronRun megatron_args_in_file(const std::string& path) {
  return read_megatron_args(read_text(path), path);
}

}  // namespace shardplan
