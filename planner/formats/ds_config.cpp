#include "planner/formats/ds_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/text.h"
#include "planner/formats/ds_config_keys.h"
#include "planner/formats/ds_config_section.h"
#include "planner/formats/file.h"

namespace shardplan {
namespace {

using ds_config_keys::kActivationCheckpointing;
using ds_config_keys::kAio;
using ds_config_keys::kBf16;
using ds_config_keys::kDataTypes;
using ds_config_keys::kFp16;
using ds_config_keys::kOffloadOptimizer;
using ds_config_keys::kOffloadParam;
using ds_config_keys::kTop;
using ds_config_keys::kTorchAutocast;
using ds_config_keys::kZero;

// runtime/config.py, DtypeEnum.
std::optional<DType> dtype_or_null(const DsSection& section, std::string_view key) {
  const JsonView value = section.value(key);
  if (!value.exists() || value.is_null()) return std::nullopt;
  std::string_view text = value.as_string();
  if (text.starts_with("torch.")) text.remove_prefix(6);
  static constexpr std::pair<std::string_view, DType> kNames[] = {
      {"fp16", DType::f16},      {"float16", DType::f16}, {"half", DType::f16},    {"bf16", DType::bf16},
      {"bfloat16", DType::bf16}, {"fp32", DType::f32},    {"float32", DType::f32}, {"float", DType::f32}};
  for (const auto& [name, dtype] : kNames) {
    if (equal_in_any_case(text, name)) return dtype;
  }
  value.fail_expected(R"("fp16", "bf16" or "fp32")");
}

class Reader {
 public:
  explicit Reader(JsonView root) : top_(root), source_(root.source()) {
    if (!root.is_object()) root.fail_expected("an object");
    config_.source = source_;
    config_.engine = said(Engine::deepspeed, "");
  }

  TrainingConfig read() {
    top_.note_unknown(kTop, config_.notes);
    read_batch();
    read_zero();
    read_precision();
    read_aio();
    read_parallelism();
    read_optimizer();
    note_unused();
    config_.deepspeed = options_;
    return std::move(config_);
  }

 private:
  void note(const std::string& text) { config_.notes.push_back(fmt::format("{}: {}", source_, text)); }

  Saying<std::uint64_t> positive(const DsSection& section, std::string_view key) {
    if (!section.says(key) || section.value(key).is_null()) return std::nullopt;
    const std::uint64_t value = section.count(key, 0);
    if (value == 0) section.value(key).fail_expected("a positive integer");
    return said(value, section.path(key));
  }

  void read_batch() {
    config_.global_batch = positive(top_, "train_batch_size");
    config_.micro_batch = positive(top_, "train_micro_batch_size_per_gpu");
    config_.accumulation = positive(top_, "gradient_accumulation_steps");
  }

  // zero/config.py, get_zero_config: a flag is the format of 2019.
  void read_zero() {
    const JsonView value = top_.value("zero_optimization");
    if (value.exists() && !value.is_object()) {
      const bool on = value.as_bool();
      config_.stage = said(on ? 1 : 0, "zero_optimization");
      if (on) options_.allgather_bucket_size = top_.count("allgather_size", options_.allgather_bucket_size);
      return;
    }
    const DsSection zero(value);
    zero.refuse_unknown(kZero);
    config_.stage = said(read_stage(zero), "zero_optimization.stage");
    read_buckets(zero);
    read_stage3(zero);
    read_zeropp(zero);
    read_offload_optimizer(zero);
    read_offload_param(zero);
    check_flags(zero, {"allgather_partitions", "load_from_fp32_weights", "elastic_checkpoint",
                       "stage3_gather_fp16_weights_on_model_save", "ignore_unused_parameters", "legacy_stage1",
                       "round_robin_gradients", "mics_hierarchical_params_gather", "memory_efficient_linear",
                       "pipeline_loading_checkpoint", "override_module_apply", "log_trace_cache_warnings",
                       "enable_sanity_checks", "save_muon_momentum_buffer_in_memory"});
    note_autos(zero);
    note_zero(zero);
  }

  static int read_stage(const DsSection& zero) {
    const std::uint64_t stage = zero.count("stage", 0);
    if (stage > 3) zero.value("stage").fail_expected("a stage from 0 to 3");
    return static_cast<int>(stage);
  }

  void read_buckets(const DsSection& zero) {
    options_.contiguous_gradients = zero.flag("contiguous_gradients", options_.contiguous_gradients);
    options_.reduce_scatter = zero.flag("reduce_scatter", options_.reduce_scatter);
    options_.use_multi_rank_bucket_allreduce =
        zero.flag("use_multi_rank_bucket_allreduce", options_.use_multi_rank_bucket_allreduce);
    options_.reduce_bucket_size = zero.count("reduce_bucket_size", options_.reduce_bucket_size);
    options_.allgather_bucket_size = zero.count("allgather_bucket_size", options_.allgather_bucket_size);
    options_.overlap_comm = zero.flag_or_null("overlap_comm");
    // 0 makes a sub-group of every tensor, as 1 does.
    options_.sub_group_size = std::max<std::uint64_t>(1, zero.count("sub_group_size", options_.sub_group_size));
  }

  // "stage3_x" or "x" (populate_by_name), not both (extra="forbid").
  static std::string_view spelling(const DsSection& zero, std::string_view stage3) {
    const std::string_view plain = stage3.substr(std::string_view("stage3_").size());
    if (!zero.says(plain)) return stage3;
    if (zero.says(stage3)) zero.fail(plain, fmt::format("is the same as {}: expected one of them", stage3));
    return plain;
  }

  void read_stage3(const DsSection& zero) {
    const auto count = [&](std::string_view key, std::uint64_t& value) {
      value = zero.count(spelling(zero, key), value);
    };
    count("stage3_prefetch_bucket_size", options_.stage3_prefetch_bucket_size);
    count("stage3_param_persistence_threshold", options_.stage3_param_persistence_threshold);
    count("stage3_model_persistence_threshold", options_.stage3_model_persistence_threshold);
    count("stage3_max_live_parameters", options_.stage3_max_live_parameters);
    count("stage3_max_reuse_distance", options_.stage3_max_reuse_distance);
    options_.stage3_allgather_sequential = zero.flag(spelling(zero, "stage3_allgather_sequential"), false);
    for (const std::string_view key :
         {"stage3_gather_16bit_weights_on_model_save", "stage3_use_all_reduce_for_fetch_params"}) {
      zero.flag(spelling(zero, key), false);
    }
    const std::string_view granularity = spelling(zero, "stage3_module_granularity_threshold");
    if (zero.integer(granularity, 0) != 0) {
      note(fmt::format("{}: modules that are gathered whole are not sized as such", zero.path(granularity)));
    }
    if (zero.says("stage3_gather_fp16_weights_on_model_save") && zero.says("gather_16bit_weights_on_model_save")) {
      refuse_both(zero, "stage3_gather_fp16_weights_on_model_save", "gather_16bit_weights_on_model_save");
    }
  }

  void read_zeropp(const DsSection& zero) {
    options_.zero_hpz_partition_size = std::max<std::uint64_t>(1, zero.count("zero_hpz_partition_size", 1));
    const std::int64_t mics = zero.integer("mics_shard_size", -1);
    options_.mics_shard_size = mics > 0 ? mics : -1;
    config_.engine_keys["--hpz"] = zero.path("zero_hpz_partition_size");
    config_.engine_keys["--mics"] = zero.path("mics_shard_size");
    options_.zero_quantized_weights = zero.flag("zero_quantized_weights", false);
    options_.zero_quantized_nontrainable_weights = zero.flag("zero_quantized_nontrainable_weights", false);
    config_.engine_keys["zero_quantized_nontrainable_weights"] = zero.path("zero_quantized_nontrainable_weights");
    options_.zero_quantized_gradients = zero.flag("zero_quantized_gradients", false);
    const JsonView loco = zero.value("zeropp_loco_param");
    if (loco.exists() && !loco.is_null() && !loco.is_object()) loco.fail_expected("an object");
    options_.zeropp_loco = loco.is_object();
  }

  [[noreturn]] static void refuse_both(const DsSection& section, std::string_view old_key, std::string_view new_key) {
    section.fail(old_key, fmt::format("is the old name of {}: expected one of them", new_key));
  }

  static OffloadDevice read_device(const DsSection& offload) {
    const std::string device = offload.text("device");
    if (device.empty() || device == "none") return OffloadDevice::none;
    if (device == "cpu") return OffloadDevice::cpu;
    if (device == "nvme") return OffloadDevice::nvme;
    offload.value("device").fail_expected(R"("none", "cpu" or "nvme")");
  }

  // cpu_offload_param: true is offload_param {device: cpu}. Beside it, offload_param is an error.
  static bool read_old_offload(const DsSection& zero, std::string_view old_key, std::string_view new_key) {
    const auto on = zero.flag_or_null(old_key);
    if (!zero.says(old_key)) return false;
    if (zero.says(new_key)) refuse_both(zero, old_key, new_key);
    return on.value_or(false);
  }

  static void require_path(const DsSection& offload, OffloadDevice device, const std::string& path) {
    if (device == OffloadDevice::nvme && path.empty()) {
      offload.fail("nvme_path", "expected a folder, since device is \"nvme\"");
    }
  }

  void read_offload_param(const DsSection& zero) {
    DeepSpeedOptions::OffloadParam& param = options_.offload_param;
    if (read_old_offload(zero, "cpu_offload_param", "offload_param")) {
      param.device = OffloadDevice::cpu;
      config_.engine_keys["--offload"] = zero.path("cpu_offload_param");
    }
    const DsSection offload = zero.section("offload_param");
    offload.refuse_unknown(kOffloadParam);
    if (!zero.says("offload_param")) return;
    param.device = read_device(offload);
    param.nvme_path = offload.text("nvme_path");
    param.buffer_count = offload.count("buffer_count", param.buffer_count);
    param.buffer_size = offload.count("buffer_size", param.buffer_size);
    param.max_in_cpu = offload.count("max_in_cpu", param.max_in_cpu);
    param.pin_memory = offload.flag("pin_memory", param.pin_memory);
    require_path(offload, param.device, param.nvme_path);
    if (param.device != OffloadDevice::none) config_.engine_keys["--offload"] = zero.path("offload_param");
  }

  void read_offload_optimizer(const DsSection& zero) {
    DeepSpeedOptions::OffloadOptimizer& optimizer = options_.offload_optimizer;
    if (read_old_offload(zero, "cpu_offload", "offload_optimizer")) {
      optimizer.device = OffloadDevice::cpu;
      config_.engine_keys["--offload"] = zero.path("cpu_offload");
    }
    const DsSection offload = zero.section("offload_optimizer");
    offload.refuse_unknown(kOffloadOptimizer);
    if (!zero.says("offload_optimizer")) return;
    optimizer.device = read_device(offload);
    optimizer.nvme_path = offload.text("nvme_path");
    optimizer.buffer_count = offload.count("buffer_count", optimizer.buffer_count);
    optimizer.pin_memory = offload.flag("pin_memory", optimizer.pin_memory);
    optimizer.pipeline_read = offload.flag("pipeline_read", false);
    optimizer.pipeline_write = offload.flag("pipeline_write", false);
    optimizer.ratio = offload.part("ratio", optimizer.ratio);
    offload.part("cpuadam_cores_perc", 0.8);
    check_flags(offload, {"fast_init"});
    require_path(offload, optimizer.device, optimizer.nvme_path);
    if (optimizer.device != OffloadDevice::none) config_.engine_keys["--offload"] = zero.path("offload_optimizer");
    if (optimizer.ratio < 1 && config_.stage->value != 3) {
      offload.fail("ratio", fmt::format("a part of the states can be offloaded at stage 3 only, found stage {}",
                                        config_.stage->value));
    }
    if (offload.flag("super_offload", false)) {
      note(fmt::format("{}: the buffers of SuperOffload are not sized", offload.path("super_offload")));
    }
  }

  // Flags that decide no bytes are read all the same: DeepSpeed refuses a wrong one.
  static void check_flags(const DsSection& section, std::initializer_list<std::string_view> keys) {
    for (const std::string_view key : keys) section.flag(key, false);
  }

  // transformers, integrations/deepspeed.py, trainer_config_finalize.
  void note_autos(const DsSection& zero) {
    const auto note_auto = [&](std::string_view key, std::uint64_t value, const char* theirs) {
      if (!zero.is_auto(key)) return;
      note(fmt::format("{} is \"auto\": {} as in DeepSpeed; Hugging Face's Trainer makes it {}", zero.path(key),
                       with_commas(value), theirs));
    };
    note_auto("reduce_bucket_size", options_.reduce_bucket_size, "hidden_size^2");
    note_auto("stage3_prefetch_bucket_size", options_.stage3_prefetch_bucket_size, "0.9 hidden_size^2");
    note_auto("stage3_param_persistence_threshold", options_.stage3_param_persistence_threshold, "10 hidden_size");
  }

  void note_zero(const DsSection& zero) {
    const JsonView zenflow = zero.value("zenflow");
    if (zenflow.exists() && !zenflow.is_null()) note("zero_optimization.zenflow: its buffers are not sized");
    if (zero.says("cpu_offload_use_pin_memory")) {
      note("zero_optimization.cpu_offload_use_pin_memory is not used by DeepSpeed any more: pin_memory is true");
    }
  }

  void read_precision() {
    const DsSection fp16 = top_.section("fp16");
    fp16.refuse_unknown(kFp16);
    const char* bf16_key = top_.says("bf16") && !top_.value("bf16").is_null() ? "bf16" : "bfloat16";
    const DsSection bf16 = top_.section(bf16_key);
    bf16.refuse_unknown(kBf16);
    const DsSection data_types = top_.section("data_types");
    data_types.refuse_unknown(kDataTypes);
    if (fp16.flag("enabled", false) && bf16.flag("enabled", false)) {
      bf16.fail("enabled", "and fp16.enabled exclude each other");
    }
    check_flags(fp16, {"auto_cast", "consecutive_hysteresis", "fp16_master_weights_and_grads"});
    check_flags(bf16, {"check_grad_overflow", "bf16_master_weights_and_grads", "bf16_optimizer_states"});
    options_.bf16_immediate_grad_update = bf16.flag("immediate_grad_update", false);
    options_.grad_accum_dtype = dtype_or_null(data_types, "grad_accum_dtype");
    options_.communication_data_type = dtype_or_null(top_, "communication_data_type");
    options_.seq_parallel_communication_data_type =
        dtype_or_null(top_, "seq_parallel_communication_data_type").value_or(DType::f32);
    if (fp16.flag("enabled", false)) return read_16_bit(DType::f16, fp16, "fp16_master_weights_and_grads", data_types);
    if (bf16.flag("enabled", false)) return read_16_bit(DType::bf16, bf16, "bf16_master_weights_and_grads", data_types);
    refuse_masters(fp16, "fp16_master_weights_and_grads");
    refuse_masters(bf16, "bf16_master_weights_and_grads");
    if (fp16.is_auto("enabled") || bf16.is_auto("enabled")) {
      note(fmt::format("{} is \"auto\": --precision says it",
                       bf16.is_auto("enabled") ? bf16.path("enabled") : fp16.path("enabled")));
      return;
    }
    read_32_bit();
    require_param_dtype(data_types, DType::f32);
  }

  // Masters in 16 bits are meant for parameters in 16 bits; DeepSpeed would train others with masters that are narrower.
  static void refuse_masters(const DsSection& section, std::string_view key) {
    if (section.flag(key, false)) section.fail(key, "expected \"enabled\": true beside it");
  }

  // engine.py, _assert_valid_mixed_precision_config.
  static void require_param_dtype(const DsSection& data_types, DType model) {
    const auto dtype = dtype_or_null(data_types, "param_dtype");
    if (!dtype || *dtype == model) return;
    data_types.value("param_dtype").fail_expected(fmt::format("\"{}\", as fp16 and bf16 say", name(model)));
  }

  void read_16_bit(DType model, const DsSection& section, std::string_view master_key, const DsSection& data_types) {
    require_param_dtype(data_types, model);
    const bool bf16 = model == DType::bf16;
    const bool masters = section.flag(master_key, false);
    const bool states = bf16 && section.flag("bf16_optimizer_states", false);
    if (states && !masters) {
      section.fail("bf16_optimizer_states", "needs bf16_master_weights_and_grads");  // config.py, _do_error_check
    }
    if (masters && config_.stage->value == 0) section.fail(master_key, "needs stage 1, 2 or 3, found stage 0");
    const bool narrow = states || (masters && cpu_adam_follows_masters());
    const bool fp32_gradients = options_.grad_accum_dtype == DType::f32;
    const char* name = !bf16            ? "fp16-mixed"
                       : narrow         ? "bf16"
                       : masters        ? "bf16-fp32state"
                       : fp32_gradients ? "bf16-mixed-fp32grad"
                                        : "bf16-mixed";
    config_.precision = said<std::string>(name, section.path("enabled"));
    if (bf16 || !masters) return;
    config_.dtypes.master = said(model, section.path(master_key));
    if (narrow) config_.dtypes.moments = said(model, "optimizer.params.fp32_optimizer_states");
  }

  // ops/adam/cpu_adam.py: moments in fp32, unless told to have them in the dtype of what is updated.
  bool cpu_adam_follows_masters() const {
    return options_.offload_optimizer.device != OffloadDevice::none &&
           !top_.section("optimizer").section("params").flag("fp32_optimizer_states", true);
  }

  // Parameters in fp32: as they are, or with torch.autocast or Apex around the computation.
  void read_32_bit() {
    const DsSection autocast = top_.section("torch_autocast");
    autocast.note_unknown(kTorchAutocast, config_.notes);
    const DsSection amp = top_.section("amp");
    config_.precision = said<std::string>("fp32", "");
    if (autocast.flag("enabled", false)) {
      // torch.autocast's own default on a GPU.
      const DType dtype = dtype_or_null(autocast, "dtype").value_or(DType::f16);
      if (dtype == DType::f32) autocast.value("dtype").fail_expected(R"("bf16" or "fp16")");
      config_.precision = said<std::string>(dtype == DType::bf16 ? "amp-bf16" : "amp-fp16", autocast.path("enabled"));
    } else if (amp.flag("enabled", false)) {
      if (config_.stage->value > 0) {
        amp.fail("enabled", fmt::format("Apex needs stage 0, found stage {}", config_.stage->value));
      }
      config_.precision = said<std::string>("amp-fp16", amp.path("enabled"));
    }
  }

  void read_aio() {
    const DsSection aio = top_.section("aio");
    aio.note_unknown(kAio, config_.notes);
    options_.aio.block_size = aio.count("block_size", options_.aio.block_size);
    options_.aio.intra_op_parallelism = aio.count("intra_op_parallelism", options_.aio.intra_op_parallelism);
    if (options_.aio.intra_op_parallelism == 0) aio.value("intra_op_parallelism").fail_expected("a positive integer");
  }

  void read_parallelism() {
    config_.context = positive(top_, "sequence_parallel_size");
    const DsSection tensor = top_.section("tensor_parallel");
    const Saying<std::uint64_t> autotp =
        tensor.count("autotp_size", 0) == 0 ? std::nullopt : positive(tensor, "autotp_size");
    config_.tensor = autotp ? autotp : positive(tensor.section("tp"), "tp_size");
    config_.pipeline = positive(top_.section("pipeline"), "stages");
    const DsSection expert = top_.section("expert_parallel");
    if (expert.flag("enabled", false)) {
      config_.expert = positive(expert, "autoep_size");
      config_.expert_tensor = positive(expert, "expert_tensor_parallel_size");
    }
    // deepspeed.initialize makes a mesh of the two where both are there.
    const Saying<std::uint64_t> data = positive(top_, "data_parallel_size");
    if (data && config_.context) {
      config_.world_size = said(checked_multiply(data->value, config_.context->value), data->key);
    }
  }

  // runtime/config.py, DEEPSPEED_OPTIMIZERS; another name is one of torch.optim (engine.py, _configure_basic_optimizer).
  void read_optimizer() {
    const DsSection optimizer = top_.section("optimizer");
    const std::string type = optimizer.text("type");
    if (type.empty()) return;
    const DsSection params = optimizer.section("params");
    const std::string key = optimizer.path("type");
    const auto is = [&](std::string_view name) { return equal_in_any_case(type, name); };
    const auto choose = [&](OptimizerKind kind) { config_.optimizer = said(kind, key); };
    if (is("adamw") || is("muadamw")) return choose(OptimizerKind::adamw);
    // DeepSpeed's Adam decays as AdamW does unless it is told otherwise.
    if (is("adam") || is("muadam")) {
      return choose(params.flag("adam_w_mode", true) ? OptimizerKind::adamw : OptimizerKind::adam);
    }
    if (is("lion")) return choose(OptimizerKind::lion);
    if (is("muon")) return choose(OptimizerKind::muon);
    if (is("adafactor")) return choose(OptimizerKind::adafactor);
    if (is("sgd") || is("musgd")) {
      const JsonView momentum = params.value("momentum");
      const bool has = momentum.exists() && momentum.as_number() != 0;
      return choose(has ? OptimizerKind::sgd_momentum : OptimizerKind::sgd);
    }
    if (is("lamb")) {
      note(fmt::format("{}: Lamb keeps the states of Adam, and is sized as it", key));
      return choose(OptimizerKind::adam);
    }
    if (is("adagrad")) {
      note(fmt::format("{}: Adagrad keeps one state, and is sized as sgd-momentum", key));
      return choose(OptimizerKind::sgd_momentum);
    }
    note(fmt::format("{}: the states of {} are not known: --optimizer says what is sized", key, type));
  }

  void note_unused() {
    const DsSection activations = top_.section("activation_checkpointing");
    activations.refuse_unknown(kActivationCheckpointing);
    for (const std::string_view key :
         {"partition_activations", "cpu_checkpointing", "contiguous_memory_optimization"}) {
      if (activations.flag(key, false)) {
        note(fmt::format(
            "{} works where the client's code calls deepspeed.checkpointing: --recompute says whether it does",
            activations.path(key)));
      }
    }
    for (const char* key : {"elasticity", "autotuning", "compression_training", "hybrid_engine"}) {
      if (top_.section(key).flag("enabled", false)) note(fmt::format("{} is not sized", key));
    }
  }

  DsSection top_;
  std::string source_;
  TrainingConfig config_;
  DeepSpeedOptions options_;
};

}  // namespace

TrainingConfig ds_config(JsonView root) {
  return Reader(root).read();
}

TrainingConfig ds_config(std::string_view text, const std::string& source) {
  const JsonDocument document(text, source);
  return ds_config(document.root());
}

TrainingConfig ds_config_in_file(const std::string& path) {
  return ds_config(read_text(path), path);
}

}  // namespace shardplan
