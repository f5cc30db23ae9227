#include "tools/memcalc/plan_flags.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "planner/engines/fsdp2.h"
#include "tools/memcalc/client_flags.h"
#include "tools/memcalc/engine_flags.h"
#include "tools/memcalc/export.h"
#include "tools/memcalc/flags.h"
#include "tools/memcalc/torchtitan_flags.h"

namespace shardplan::memcalc {
namespace {

constexpr std::string_view kFrozen = ":frozen";  // behind MODEL

constexpr const char* kModelHelp =
    "a preset (memcalc models lists them), a config.json, a folder that holds one, a .safetensors file, an "
    "*.safetensors.index.json, a folder of them, or a tensor list; with :frozen behind it nothing of it is trained. "
    "plan and fit take several, which share the GPUs";

DType dtype_of(const char* flag, const std::string& text) {
  const auto dtype = parse_dtype(text);
  if (!dtype) throw ConfigError(flag, "", fmt::format("'{}' is not a dtype: expected fp32, bf16, fp16, ...", text));
  return *dtype;
}

Policy resolve(const PolicyFlags& flags) {
  Policy policy = policy_named(flags.precision);
  for (const auto& [flag, text] : flags.overrides) {
    const DType dtype = dtype_of(flag.c_str(), text);
    if (flag == "--param-dtype") policy.parameter = dtype;
    if (flag == "--grad-dtype") policy.gradient = dtype;
    if (flag == "--grad-accum-dtype") policy.gradient_accumulator = dtype;
    if (flag == "--master-dtype") policy.master = dtype;
    if (flag == "--moment-dtype") policy.first_moment = policy.second_moment = dtype;
    if (flag == "--compute-dtype") policy.compute = dtype;
    if (flag == "--wire-dtype") policy.wire = dtype;
  }
  // A gradient that travels as itself goes on doing so.
  if (flags.overrides.contains("--grad-dtype") && !flags.overrides.contains("--wire-dtype")) {
    policy.wire = policy.gradient;
  }
  return policy;
}

void add_precision(CLI::App* app, PolicyFlags& flags) {
  std::vector<std::string> names;
  for (const Policy& policy : all_policies()) names.push_back(policy.name);
  app->add_option("--precision", flags.precision, fmt::format("{} (bf16-mixed)", fmt::join(names, ", ")))
      ->type_name("NAME")
      ->group("Precision and optimizer");
  for (const auto& [flag, help] : std::map<std::string, std::string>{
           {"--param-dtype", "parameters"},
           {"--grad-dtype", "gradients (and what travels, unless --wire-dtype is given)"},
           {"--grad-accum-dtype", "the accumulator of micro-batches"},
           {"--master-dtype", "the optimizer's copy of the parameters"},
           {"--moment-dtype", "both moments of the optimizer"},
           {"--compute-dtype", "the client's computation"},
           {"--wire-dtype", "contributions to a reduction"}}) {
    app->add_option_function<std::string>(
           flag, [&flags, flag = flag](const std::string& text) { flags.overrides[flag] = text; }, help)
        ->type_name("DTYPE")
        ->group("Precision and optimizer");
  }
}

void add_parallelism(CLI::App* app, PlanOptions& options) {
  Parallelism& parallel = options.setup.parallel;
  constexpr const char* kGroup = "Parallelism";
  const auto add = [&](const std::string& flag, auto& count, const std::string& help) {
    add_count(app, flag, count, help);
    app->get_option(flag)->group(kGroup);
  };
  add("--tp", parallel.tensor, "ranks that share out each layer (1)");
  add("--pp", parallel.pipeline, "stages of layers (1)");
  add("--cp", parallel.context, "ranks that share out a sequence (1)");
  add("--ep", parallel.expert, "ranks that share out the experts of a layer (1)");
  add("--etp", parallel.expert_tensor, "ranks that share out one expert (--tp)");
  add("--virtual-stages", parallel.virtual_stages, "pieces of the model on each pipeline rank, in turn (1)");
  app->add_flag("--sequence-parallel", parallel.sequence_parallel, "split activations between layers along --tp")
      ->group(kGroup);
  std::map<std::string, std::optional<PipelineSchedule>> schedules;
  for (const PipelineSchedule schedule : {PipelineSchedule::one_f_one_b, PipelineSchedule::interleaved,
                                          PipelineSchedule::zero_bubble, PipelineSchedule::dualpipe}) {
    schedules.emplace(name(schedule), schedule);
  }
  add_word<std::optional<PipelineSchedule>>(
      app, "--schedule", parallel.schedule,
      "1f1b, interleaved, zero-bubble or dualpipe (1f1b; with virtual stages interleaved)",
      word_of<std::optional<PipelineSchedule>>("--schedule", std::move(schedules)));
  app->get_option("--schedule")->group(kGroup);
  add("--first-stage-layers", parallel.first_stage_layers, "of an uneven pipeline");
  add("--last-stage-layers", parallel.last_stage_layers, "of an uneven pipeline");
  add("--vocabulary-multiple", options.vocabulary_multiple,
      "the vocabulary is padded to a multiple of this x --tp (1; engine megatron 128)");
}

std::optional<Lora> resolve(const LoraFlags& flags) {
  if (!flags.rank) {
    for (const auto& [flag, given] : {std::pair{"--lora-targets", !flags.targets.empty()},
                                      {"--modules-to-save", !flags.modules_to_save.empty()},
                                      {"--lora-dtype", flags.dtype.has_value()},
                                      {"--lora-dropout", flags.dropout.has_value()}}) {
      if (given) throw ConfigError(flag, "", "needs --lora-rank");
    }
    return std::nullopt;
  }
  if (*flags.rank == 0) throw ConfigError("--lora-rank", "", "expected 1 or more");
  if (flags.targets.empty()) {
    throw ConfigError("--lora-rank", "", "needs --lora-targets: names of modules such as q_proj,v_proj, or all-linear");
  }
  if (flags.dropout && !(*flags.dropout >= 0 && *flags.dropout < 1)) {
    throw ConfigError("--lora-dropout", "", "expected a rate from 0 to below 1");
  }
  return Lora{*flags.rank, flags.targets, flags.modules_to_save, flags.dtype};
}

void add_adapters(CLI::App* app, PlanOptions& options, LoraFlags& flags) {
  constexpr const char* kGroup = "Adapters";
  add_count(app, "--lora-rank", flags.rank, "rank of the adapters; the rest of the model is frozen");
  app->get_option("--lora-rank")->group(kGroup);
  app->add_option("--lora-targets", flags.targets, "modules with an adapter, as q_proj,v_proj; or all-linear")
      ->type_name("GLOB,...")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->group(kGroup);
  app->add_option("--modules-to-save", flags.modules_to_save, "modules of which a copy is trained, beside adapters")
      ->type_name("GLOB,...")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->group(kGroup);
  add_word<std::optional<DType>>(
      app, "--lora-dtype", flags.dtype,
      "of the adapters: fp32 (peft's beside 16-bit weights), bf16 or fp16 (the parameters')",
      word_of<std::optional<DType>>("--lora-dtype",
                                    {{"fp32", DType::f32}, {"bf16", DType::bf16}, {"fp16", DType::f16}}));
  app->get_option("--lora-dtype")->group(kGroup);
  app->add_option("--lora-dropout", flags.dropout, "rate of dropout before the adapters (0)")
      ->type_name("RATE")
      ->group(kGroup);
  add_word<std::optional<Quantization>>(
      app, "--quantize", options.quantize,
      "frozen weights of linear modules in nf4, nf4-single (without double quantisation) or int8, with their scales",
      word_of<std::optional<Quantization>>(
          "--quantize",
          {{"nf4", Quantization::nf4}, {"nf4-single", Quantization::nf4_single}, {"int8", Quantization::int8}}));
  app->get_option("--quantize")->group(kGroup);
}

// --gpus counts all ranks: what is left for the data axis.
void divide_world(Setup& setup) {
  const Parallelism& p = setup.parallel;
  validate(p);
  const std::uint64_t model_ranks = checked_multiply(p.tensor, p.pipeline);
  const std::uint64_t ranks = checked_multiply(model_ranks, p.context);
  if (setup.world_size % ranks != 0) {
    throw ConfigError("--gpus", "",
                      fmt::format("{} is no multiple of --tp x --pp x --cp = {} x {} x {} = {}", setup.world_size,
                                  p.tensor, p.pipeline, p.context, ranks));
  }
  setup.world_size /= model_ranks;
}

void add_config_files(CLI::App* app, ConfigFlags& config) {
  constexpr const char* kGroup = "Configuration files (flags win over them)";
  const auto add = [&](const char* flag, std::vector<std::string>& paths, const char* help) {
    app->add_option(flag, paths, help)->type_name("FILE")->allow_extra_args(false)->group(kGroup);
  };
  add("--ds-config", config.ds_config, "a ds_config.json of DeepSpeed; implies --engine deepspeed");
  add("--accelerate-config", config.accelerate_config, "the YAML of accelerate config; implies the engine it launches");
  add("--megatron-args", config.megatron_args,
      "Megatron-LM's arguments (YAML or JSON), instead of MODEL too; implies --engine megatron");
}

// A model is named in one of three ways.
void require_one_model(const PlanOptions& options, const ConfigFlags& files) {
  const bool megatron = !files.megatron_args.empty();
  if (megatron && (!options.model.empty() || options.parameters)) {
    throw ConfigError("--megatron-args", "", "stands for MODEL: neither a model nor --params is expected beside it");
  }
  if (options.model.empty() == (megatron || options.parameters)) return;
  throw ConfigError("MODEL", "",
                    options.parameters ? "a model and --params exclude each other"
                                       : "expected a model (a preset, a file, a folder), --params or --megatron-args");
}

// Flags and file together become the set-up.
void settle(PlanOptions& options, PlanFlags& flags, const std::set<std::string>& given,
            const std::optional<TrainingConfig>& config) {
  if (config) apply_config(*config, given, options, flags.policy);
  check_engine_of_export(options);
  const bool megatron = options.engine == Engine::megatron;
  const bool said = given.contains("--precision") || options.origins.contains("--precision");
  // Megatron-LM keeps main gradients in fp32 unless it is told otherwise.
  if (megatron && !said) flags.policy.precision = "bf16-mixed-fp32grad";
  options.setup.policy = resolve(flags.policy);
  if (megatron && (!config || !config->megatron || given.contains("--precision") || given.contains("--grad-dtype"))) {
    options.engine_options.megatron.main_grads_dtype = options.setup.policy.gradient;
  }
  options.lora = resolve(flags.lora);
  options.client.adapter_dropout = flags.lora.dropout.value_or(0);
  settle_torchtitan(options, given);
  options.setup.parallel.vocabulary_multiple =
      options.vocabulary_multiple.value_or(options.engine == Engine::megatron ? 128 : 1);
  divide_world(options.setup);
  if (config) apply_batch(*config, given, options);
  validate(options.setup);
  apply_engine_flags(options, given);
  if (options.save_background && options.engine != Engine::shardplan) {
    throw ConfigError("--save-background", "", fmt::format("is not known of engine {}", name(options.engine)));
  }
}

// The first MODEL, and those beside it.
void take_models(PlanOptions& options, const PlanFlags& flags) {
  const std::vector<std::string>& models = flags.models;
  if (models.empty()) return;
  if (models.size() > 1 && !options.freeze.empty()) {
    throw ConfigError("--freeze", "", "would be of several models: expected MODEL:frozen, or one MODEL");
  }
  for (const std::string& model : models) {
    if (model == kFrozen) throw ConfigError("MODEL", "", "':frozen' names no model: expected MODEL:frozen");
  }
  set_model(options, models.front());
  options.others.assign(models.begin() + 1, models.end());
  if (options.others.empty() && models.front().ends_with(kFrozen) && flags.lora.rank) {
    throw ConfigError("--lora-rank", "",
                      "adapters freeze the rest of a model themselves: expected MODEL without :frozen");
  }
}

}  // namespace

void add_plan_flags(CLI::App* app, PlanOptions& options, PlanFlags& flags) {
  Setup& setup = options.setup;
  app->add_option("MODEL", flags.models, kModelHelp)->type_name("");
  app->add_option("--params", options.parameters,
                  "a number of parameters instead of MODEL: 7e9, 7B, 350M (model states only)")
      ->type_name("COUNT");
  app->add_option("--freeze", options.freeze, "freeze the tensors whose names match (* and ?); may be repeated")
      ->type_name("GLOB")
      ->allow_extra_args(false);

  add_count(app, "--gpus", setup.world_size, "world size (1)");
  add_count(app, "--gpus-per-node", options.gpus_per_node, "GPUs in a node (8; to simulate, the cluster's)");
  app->add_option("--gpu", options.gpu, "a GPU's name (memcalc gpus lists them) or its memory, as 80GiB")
      ->type_name("NAME|SIZE");
  app->add_option("--gpu-file", options.gpu_files, "a table of more GPUs (docs/gpus.md); may be repeated")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app->add_option("--zero", setup.stage,
                  "ZeRO stage: 0 nothing is sharded, 1 optimizer states, 2 and gradients, 3 and parameters (0)")
      ->type_name("0..3");
  add_word<Engine>(app, "--engine", options.engine,
                   "whose runtime: shardplan, deepspeed, fsdp2, megatron, or paper (the textbook formula) (shardplan)",
                   [](const std::string& text) { return engine_named(text); });
  add_count(app, "--hpz", options.engine_options.deepspeed.zero_hpz_partition_size,
            "deepspeed: ranks that share a second copy of the parameters at stage 3 (1: none)");
  add_count(app, "--mics", options.engine_options.deepspeed.mics_shard_size,
            "deepspeed: ranks that shard, while groups of them replicate (all)");
  app->add_option(
         "--offload", options.offload,
         "optimizer, parameters or gradients = cpu or file[:FOLDER] (nvme is another word for file); @FRACTION after "
         "the tier for a part of it: optimizer=cpu@0.5")
      ->type_name("CLASS=TIER,...");
  add_count(app, "--replicate", setup.replicate,
            "hybrid sharding: this many groups, sharded inside, replicated across (1)");
  add_count(app, "--prefetch", setup.prefetch, "units gathered ahead at stage 3; 0 hides nothing and needs least (1)");
  add_count(app, "--grad-accum", setup.accumulation, "micro-batches per step (1)");
  add_word<std::optional<Cadence>>(
      app, "--cadence", setup.cadence, "when gradients are reduced: micro_batch or step (step at stages 0, 1)",
      [read = word_of<Cadence>("--cadence", {{"micro_batch", Cadence::micro_batch}, {"step", Cadence::step}})](
          const std::string& text) { return std::optional<Cadence>(read(text)); });
  add_word<Reduction>(
      app, "--reduction", setup.reduction, "order of sums: canonical (same bits everywhere) or fast (canonical)",
      word_of<Reduction>("--reduction", {{"canonical", Reduction::canonical}, {"fast", Reduction::fast}}));
  add_count(app, "--reduction-group", setup.reduction_group, "ranks that are summed first (the shard group)");
  add_word<Transport>(
      app, "--transport", setup.transport, "direct (ranks read each other's memory) or staged (direct)",
      word_of<Transport>("--transport", {{"direct", Transport::direct}, {"staged", Transport::staged}}));
  add_client_flags(app, options);
  add_config_files(app, flags.config);
  add_parallelism(app, options);
  add_adapters(app, options, flags.lora);
  add_precision(app, flags.policy);
  std::vector<std::string_view> optimizers;
  for (const OptimizerStates& optimizer : all_optimizers()) optimizers.push_back(optimizer.name);
  add_word<OptimizerKind>(app, "--optimizer", setup.optimizer, fmt::format("{} (adamw)", fmt::join(optimizers, ", ")),
                          [](const std::string& text) { return optimizer_named(text).kind; });
  app->add_flag("--adafactor-first-moment", setup.adafactor_first_moment, "Adafactor with beta1");
  app->add_flag("--optimizer-in-backward", setup.optimizer_in_backward,
                "update each tensor as soon as its gradient is there (engine paper)");
  app->add_flag("--ema", setup.ema, "keep an fp32 moving average of the parameters");
  app->add_flag("--save-background", options.save_background,
                "checkpoints are written while training goes on: a copy of a rank's state in host memory more");
  app->add_flag("--json", options.json, "one JSON object on stdout and nothing else");
  app->add_flag("--verbose", options.verbose, "also the units, their layout and the programs");
}

void set_model(PlanOptions& options, const std::string& text) {
  const bool frozen = text.ends_with(kFrozen);
  options.model = frozen ? text.substr(0, text.size() - kFrozen.size()) : text;
  if (frozen) options.freeze.emplace_back("*");
}

void finish(PlanOptions& options, PlanFlags& flags, const std::set<std::string>& given) {
  take_models(options, flags);
  require_one_model(options, flags.config);
  constexpr std::uint64_t most_in_a_node = 1'000'000;
  if (options.node_gpus() == 0 || options.node_gpus() > most_in_a_node) {
    throw ConfigError("--gpus-per-node", "", fmt::format("expected 1 to {}", most_in_a_node));
  }
  if (options.micro_batch == 0) throw ConfigError("--micro-batch", "", "expected 1 or more");
  if (options.sequence && *options.sequence == 0) throw ConfigError("--seq", "", "expected 1 or more");
  choose_engine_of_export(given, options);
  settle(options, flags, given, read_config_file(flags.config, options));
}

ClientSetup PlanOptions::whole_client() const {
  ClientSetup whole = client;
  whole.profile = profile.value_or(engine == Engine::megatron ? Profile::megatron : Profile::hf_sdpa);
  whole.sequence = sequence.value_or(0);
  whole.passes_keys_on = engine == Engine::fsdp2;
  if (engine == Engine::fsdp2 && whole.profile == Profile::torchtitan && setup.parallel.pipeline > 1)
    whole.waiting_gradients = fsdp2_waiting_dtype(setup.policy, engine_options.fsdp2);
  whole.micro_batch = micro_batch;
  if (!megatron) {
    // Without arguments of a run, as recipes for models of other people run them: what Megatron drops out by default these
    // models do not, and long sequences have no mask of all pairs.
    whole.megatron.hidden_dropout = 0;
    whole.megatron.attention_dropout = 0;
    whole.megatron.create_attention_mask = false;
    if (setup.policy.name == "fp8-mixed") whole.megatron.fp8 = Fp8Recipe::delayed;
  }
  return whole;
}

PlanOptions options_of(MegatronRun run) {
  PlanOptions options;
  PlanFlags flags;
  options.megatron = std::move(run);
  settle(options, flags, {}, options.megatron->config);
  return options;
}

}  // namespace shardplan::memcalc
