#include <fmt/format.h>

#include "base/checked.h"
#include "base/error.h"
#include "planner/formats/megatron_args.h"
#include "planner/formats/yaml.h"

namespace shardplan {
namespace {

[[noreturn]] void refuse(const char* flag, const std::string& problem) {
  throw ConfigError(flag, "", fmt::format("Megatron's arguments cannot say {}", problem));
}

class Lines {
 public:
  void count(std::string_view name, std::uint64_t value) { text_ += fmt::format("  --{}: {}\n", name, value); }
  void count_if(std::string_view name, const std::optional<std::uint64_t>& value) {
    if (value) count(name, *value);
  }
  void word(std::string_view name, std::string_view value) {
    text_ += fmt::format("  --{}: {}\n", name, yaml_scalar(value));
  }
  void flag(std::string_view name, bool value) {
    if (value) text_ += fmt::format("  --{}: true\n", name);
  }
  std::string text() const { return text_; }

 private:
  std::string text_;
};

const char* positions_of(MegatronPositions positions) {
  switch (positions) {
    case MegatronPositions::learned:
      return "learned_absolute";
    case MegatronPositions::rotary:
      return "rope";
    case MegatronPositions::relative:
      return "relative";
    case MegatronPositions::none:
      return "none";
  }
  return "";
}

void write_layers(Lines& lines, const MegatronSizes& s) {
  if (s.kind == MegatronKind::t5) {
    lines.count("encoder-num-layers", s.encoder_layers);
    lines.count("decoder-num-layers", s.layers);
    return;
  }
  if (s.kind != MegatronKind::hybrid) return lines.count("num-layers", s.layers);
  std::string pattern = s.pattern;
  for (std::uint64_t depth = 0; depth < s.prediction_layers; ++depth) pattern += "/" + s.prediction_pattern;
  lines.word("hybrid-layer-pattern", pattern);
  lines.word("spec", "[megatron.core.models.hybrid.hybrid_layer_specs hybrid_stack_spec]");
  lines.count("mamba-state-dim", s.mamba.state);
  lines.count("mamba-head-dim", s.mamba.head);
  lines.count("mamba-num-groups", s.mamba.groups);
  if (s.mamba.heads > 0) lines.count("mamba-num-heads", s.mamba.heads);
}

void write_block(Lines& lines, const MegatronSizes& s) {
  lines.word("normalization", s.rms_norm ? "RMSNorm" : "LayerNorm");
  // As memcalc counts activations where no arguments say otherwise.
  lines.word("hidden-dropout", "0.0");
  lines.word("attention-dropout", "0.0");
  lines.flag("no-create-attention-mask-in-dataloader", true);
  lines.flag("swiglu", s.gated && s.activation == "silu");
  lines.flag("quick-geglu", s.gated && s.activation == "quick_gelu");
  lines.flag("squared-relu", s.activation == "relu2");
  lines.flag("disable-bias-linear", !s.linear_bias);
  lines.flag("add-qkv-bias", s.qkv_bias);
  lines.flag("qk-layernorm", s.qk_norm);
  lines.flag("attention-output-gate", s.output_gate);
  lines.flag("untie-embeddings-and-output-weights", s.untied);
  lines.flag("bert-no-binary-head", !s.binary_head);
  lines.word("position-embedding-type", positions_of(s.positions));
  if (s.positions == MegatronPositions::relative) lines.count("relative-attention-num-buckets", s.relative_buckets);
  if (!s.latent) return;
  lines.flag("multi-latent-attention", true);
  if (s.latent->query_rank > 0) lines.count("q-lora-rank", s.latent->query_rank);
  lines.count("kv-lora-rank", s.latent->key_rank);
  lines.count("qk-head-dim", s.latent->head);
  lines.count("qk-pos-emb-head-dim", s.latent->rotary);
  lines.count("v-head-dim", s.latent->value);
}

void write_experts(Lines& lines, const MegatronSizes::Experts& e) {
  lines.count("num-experts", e.experts);
  lines.count("moe-router-topk", e.chosen);
  lines.count("moe-ffn-hidden-size", e.ffn);
  if (e.shared_ffn > 0) lines.count("moe-shared-expert-intermediate-size", e.shared_ffn);
  lines.flag("moe-shared-expert-gate", e.shared_gate);
  if (e.latent > 0) lines.count("moe-latent-size", e.latent);
  lines.flag("moe-grouped-gemm", e.grouped);
  lines.flag("moe-router-enable-expert-bias", e.balancing_bias);
  // Its checks: a bias needs sigmoid scores.
  if (e.balancing_bias) lines.word("moe-router-score-function", "sigmoid");
  if (e.layers.empty()) return;
  std::string list;
  for (std::size_t i = 0, next = 0; i < e.layers.size(); i = next) {
    for (next = i; next < e.layers.size() && e.layers[next] == e.layers[i];) ++next;
    list += fmt::format("{}[{}]*{}", list.empty() ? "" : "+", e.layers[i] ? 1 : 0, next - i);
  }
  lines.word("moe-layer-freq", "(" + list + ")");
}

void write_capacity(Lines& lines, const ExpertLoad& load) {
  if (!load.capacity_factor) return;
  lines.word("moe-expert-capacity-factor", fmt::format("{}", *load.capacity_factor));
  lines.flag("moe-pad-expert-input-to-capacity", load.padded);
}

void write_model(Lines& lines, const MegatronSizes& s) {
  write_layers(lines, s);
  lines.count("hidden-size", s.hidden);
  lines.count("ffn-hidden-size", s.ffn);
  lines.count("num-attention-heads", s.heads);
  if (s.query_groups != s.heads) {
    lines.flag("group-query-attention", true);
    lines.count("num-query-groups", s.query_groups);
  }
  lines.count("kv-channels", s.kv_channels);
  lines.count("max-position-embeddings", s.max_positions);
  lines.count("vocab-size", s.vocabulary);
  write_block(lines, s);
  if (s.experts) write_experts(lines, *s.experts);
  if (s.kind == MegatronKind::gpt && s.prediction_layers > 0) lines.count("mtp-num-layers", s.prediction_layers);
  if (s.kind == MegatronKind::bert) {
    if (!s.transformer_engine) lines.word("spec", "local");
  } else {
    lines.word("transformer-impl", s.transformer_engine ? "transformer_engine" : "local");
  }
}

// As parse_pipeline_layout reads it.
std::string layout_words(const std::vector<std::uint64_t>& pieces, std::uint64_t prediction_layers) {
  const auto repeated = [](const char* layer, std::uint64_t times) {
    return times == 0 ? std::string() : times == 1 ? std::string(layer) : fmt::format("{}*{}", layer, times);
  };
  std::string words = "E";
  for (std::size_t piece = 0; piece < pieces.size(); ++piece) {
    words += (piece > 0 ? "|" : "") + repeated("t", pieces[piece]);
  }
  return words + repeated("m", prediction_layers) + "L";
}

void write_parallelism(Lines& lines, const MegatronSizes& sizes, const Setup& setup) {
  const Parallelism& p = setup.parallel;
  if (p.schedule && *p.schedule != PipelineSchedule::one_f_one_b && *p.schedule != PipelineSchedule::interleaved) {
    refuse("--schedule", fmt::format("the schedule {}", name(*p.schedule)));
  }
  if (p.sequence_parallel && p.tensor == 1) refuse("--sequence-parallel", "sequence parallelism without --tp");
  lines.count("tensor-model-parallel-size", p.tensor);
  lines.count("pipeline-model-parallel-size", p.pipeline);
  lines.count("context-parallel-size", p.context);
  lines.count("expert-model-parallel-size", p.expert);
  lines.count_if("expert-tensor-parallel-size", p.expert_tensor);
  lines.flag("sequence-parallel", p.sequence_parallel);
  if (!p.piece_layers.empty()) {
    lines.word("pipeline-model-parallel-layout", layout_words(p.piece_layers, sizes.prediction_layers));
  } else if (p.virtual_stages > 1) {
    lines.count("num-virtual-stages-per-pipeline-rank", p.virtual_stages);
  }
  lines.count_if("decoder-first-pipeline-num-layers", p.first_stage_layers);
  lines.count_if("decoder-last-pipeline-num-layers", p.last_stage_layers);
  lines.flag("account-for-embedding-in-pipeline-split", p.embedding_is_a_layer);
  lines.flag("account-for-loss-in-pipeline-split", p.loss_is_a_layer);
  lines.count("make-vocab-size-divisible-by", p.vocabulary_multiple);
}

// What megatron_args.h says of precision, the other way round.
void write_precision(Lines& lines, const MegatronSizes& sizes, const Setup& setup, const MegatronOptions& options) {
  const Policy& policy = setup.policy;
  const bool half = policy.parameter == DType::bf16 || policy.parameter == DType::f16;
  if (!half && policy.parameter != DType::f32) {
    refuse("--precision", fmt::format("parameters in {}", name(policy.parameter)));
  }
  if (policy.master != (half ? std::optional(DType::f32) : std::nullopt)) refuse("--master-dtype", "such masters");
  if (policy.first_moment != DType::f32 || policy.second_moment != DType::f32) {
    refuse("--moment-dtype", "moments that are not in fp32, but for those of the precision-aware optimizer");
  }
  const DType main = options.main_grads_dtype;
  if (main != DType::f32 && main != policy.parameter) {
    refuse("--grad-dtype",
           fmt::format("main gradients in {} with parameters in {}", name(main), name(policy.parameter)));
  }
  if (policy.gradient != main) {
    refuse("--grad-dtype",
           fmt::format("gradients in {} beside main gradients in {}", name(policy.gradient), name(main)));
  }
  lines.flag("bf16", policy.parameter == DType::bf16);
  lines.flag("fp16", policy.parameter == DType::f16);
  lines.flag("grad-reduce-in-bf16", main == DType::bf16);
  lines.flag("accumulate-allreduce-grads-in-fp32", policy.parameter == DType::f16 && main == DType::f32);
  const bool fp8 = policy.compute == DType::f8_e4m3;
  if (policy.compute != policy.parameter && !fp8)
    refuse("--compute-dtype", fmt::format("computation in {}", name(policy.compute)));
  if (sizes.fp8_matrices && !fp8) refuse("--compute-dtype", "matrices that are kept in fp8 and used in another dtype");
  if (fp8) lines.word("fp8-format", "hybrid");
  lines.flag("fp8-param-gather", sizes.fp8_matrices);
}

const char* strategy_of(MegatronSharding sharding) {
  switch (sharding) {
    case MegatronSharding::no_shard:
      return "no_shard";
    case MegatronSharding::optim:
      return "optim";
    case MegatronSharding::optim_grads:
      return "optim_grads";
    case MegatronSharding::optim_grads_params:
      return "optim_grads_params";
  }
  return "";
}

void write_sharding(Lines& lines, const Setup& setup, const MegatronOptions& options) {
  if (setup.replicate > 1) refuse("--replicate", "that groups replicate");
  const bool fsdp = options.use_megatron_fsdp || options.data_parallel_sharding_strategy || setup.stage >= 2;
  const bool distributed = options.use_distributed_optimizer.value_or(setup.stage >= 1);
  lines.flag("use-distributed-optimizer", distributed);
  if (fsdp) {
    const MegatronSharding by_stage =
        setup.stage == 2 ? MegatronSharding::optim_grads : MegatronSharding::optim_grads_params;
    lines.flag("use-megatron-fsdp", true);
    lines.word("data-parallel-sharding-strategy",
               strategy_of(options.data_parallel_sharding_strategy.value_or(by_stage)));
    lines.word("ckpt-format", "fsdp_dtensor");
  }
  if (options.num_distributed_optimizer_instances > 1) {
    lines.count("num-distributed-optimizer-instances", options.num_distributed_optimizer_instances);
  }
  lines.flag("overlap-grad-reduce", options.overlap_grad_reduce);
  lines.flag("fsdp-double-buffer", options.fsdp_double_buffer);
  lines.count_if("suggested-communication-unit-size", options.suggested_communication_unit_size);
  lines.count_if("ddp-bucket-size", options.ddp_bucket_size);
  lines.flag("ddp-pad-buckets-for-high-nccl-busbw", options.pad_buckets_for_high_nccl_busbw);
}

const char* dtype_word(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "fp32";
    case DType::f16:
      return "fp16";
    case DType::bf16:
      return "bf16";
    case DType::f8_e4m3:
      return "fp8";
    default:
      refuse("--moment-dtype", fmt::format("states in {}", name(dtype)));
  }
}

void write_optimizer(Lines& lines, const Setup& setup, const MegatronOptions& options) {
  switch (setup.optimizer) {
    case OptimizerKind::adamw:
      lines.word("optimizer", "adam");
      break;
    case OptimizerKind::sgd_momentum:
      lines.word("optimizer", "sgd");
      break;
    case OptimizerKind::lion:
      lines.word("optimizer", "lion");
      break;
    case OptimizerKind::muon:
      lines.word("optimizer", "muon");
      break;
    default:
      refuse("--optimizer",
             fmt::format("{}: expected adamw, sgd-momentum, lion or muon", states_of(setup.optimizer).name));
  }
  if (setup.ema) refuse("--ema", "that a moving average is kept");
  if (setup.optimizer_in_backward) refuse("--optimizer-in-backward", "that tensors are updated in the backward");
  if (!options.store_param_remainders) refuse("--master-dtype", "that whole masters are kept");
  if (options.optimizer_cpu_offload && !options.use_precision_aware_optimizer) {
    refuse("--offload", "offloaded states without the precision-aware optimizer");
  }
  lines.flag("use-precision-aware-optimizer", options.use_precision_aware_optimizer);
  if (options.use_precision_aware_optimizer) {
    lines.word("main-params-dtype", dtype_word(options.main_params_dtype));
    lines.word("exp-avg-dtype", dtype_word(options.exp_avg_dtype));
    lines.word("exp-avg-sq-dtype", dtype_word(options.exp_avg_sq_dtype));
  }
  lines.flag("optimizer-cpu-offload", options.optimizer_cpu_offload);
  if (options.optimizer_cpu_offload) {
    lines.word("optimizer-offload-fraction", fmt::format("{}", options.optimizer_offload_fraction));
  }
}

void write_batch(Lines& lines, const MegatronSizes& sizes, const Setup& setup, std::uint64_t micro_batch,
                 std::optional<std::uint64_t> sequence) {
  lines.count("micro-batch-size", micro_batch);
  lines.count("global-batch-size",
              checked_multiply(checked_multiply(micro_batch, setup.accumulation), data_parallel(setup)));
  lines.count(sizes.kind == MegatronKind::t5 ? "encoder-seq-length" : "seq-length",
              sequence.value_or(sizes.max_positions));
  if (setup.recompute != Recompute::full) return;
  lines.word("recompute-granularity", "full");
  lines.word("recompute-method", "uniform");
  lines.count("recompute-num-layers", 1);
}

}  // namespace

std::string megatron_args_text(const MegatronSizes& sizes, const Setup& setup, const MegatronOptions& options,
                               const ExpertLoad& load, std::uint64_t micro_batch,
                               std::optional<std::uint64_t> sequence) {
  Lines lines;
  write_model(lines, sizes);
  if (sizes.experts) write_capacity(lines, load);
  write_parallelism(lines, sizes, setup);
  write_batch(lines, sizes, setup, micro_batch, sequence);
  write_precision(lines, sizes, setup, options);
  write_sharding(lines, setup, options);
  write_optimizer(lines, setup, options);
  const char* script = sizes.kind == MegatronKind::bert     ? "pretrain_bert.py"
                       : sizes.kind == MegatronKind::t5     ? "pretrain_t5.py"
                       : sizes.kind == MegatronKind::hybrid ? "pretrain_hybrid.py"
                                                            : "pretrain_gpt.py";
  return fmt::format("script: {}\nworld_size: {}\nMODEL_ARGS:\n{}", script, total_ranks(setup), lines.text());
}

}  // namespace shardplan
