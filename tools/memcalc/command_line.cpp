// The only source that includes CLI11.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "tools/memcalc/config_files.h"
#include "tools/memcalc/engine_flags.h"
#include "tools/memcalc/export.h"
#include "tools/memcalc/fitting.h"
#include "tools/memcalc/options.h"
#include "tools/version.h"

namespace shardplan::memcalc {
namespace {

constexpr const char* kModelHelp =
    "a preset (memcalc models lists them), a config.json, a folder that holds one, a .safetensors file, an "
    "*.safetensors.index.json, a folder of them, or a tensor list";

constexpr const char* kFooter = R"(Examples:
  memcalc plan llama-2-7b --gpus 8 --zero 3
  memcalc plan path/to/config.json --gpus 64 --zero 2 --gpu h100-80gb --json
  memcalc plan --params 7e9 --engine paper --precision fp16-mixed
  memcalc explain gpt2-xl --gpus 4 --zero 1
  memcalc simulate llama-2-7b --gpus 64 --zero 3 --plot memory.svg

Exit status: 0 done, 1 it does not fit (--gpu), 2 the command line is wrong, 3 an input file or a model is bad.)";

constexpr const char* kFitFooter = R"(Examples:
  memcalc fit llama-2-7b --gpus 8 --gpu h100-80gb --seq 4096 --global-batch 64
  memcalc fit llama-2-7b --gpus 8 --gpu 24GiB --seq 2048 --zero 3 --ask cheapest
  memcalc fit llama-3.1-8b --gpus 8 --zero 3 --gpu a100-80gb --seq 8192 --ask micro-batch

Axes whose flag is given (--zero, --tp, --pp, --ep, --micro-batch, --recompute) are not varied.

Exit status: 0 something fits, 1 nothing does, 2 the command line is wrong, 3 an input file or a model is bad.)";

constexpr const char* kSimulateFooter = R"(Examples:
  memcalc simulate llama-2-7b --gpus 64 --zero 3 --plot memory.svg
  memcalc simulate llama-2-7b --gpus 64 --cluster h100-ethernet --compare-stages --plot stages.svg
  memcalc simulate gpt2 --gpus 8 --zero 2 --fault slow-rank,rank=3,factor=2 --trace trace.json
  memcalc simulate gpt2 --gpus 4 --zero 3 --fault random --seed 7 --json

--gpu decides the cluster (the first one that has it) and the memory; a size decides the memory alone.

Exit status: 0 done, 1 it does not fit (--gpu, or the cluster's), 2 the command line is wrong, 3 an input file or a
model is bad.)";

// A flag whose word is read by `read`, which throws ConfigError.
void add_read(CLI::App* app, const std::string& flag, const std::string& help,
              std::function<void(const std::string&)> read) {
  app->add_option_function<std::string>(
         flag,
         [read = std::move(read)](const std::string& text) {
           try {
             read(text);
           } catch (const ConfigError& error) {
             throw CLI::ValidationError(error.source(), error.problem());
           }
         },
         help)
      ->type_name("NAME");
}

// Every flag that is a word from a table. The message of a wrong word comes from the table.
template <typename Value>
void add_word(CLI::App* app, const std::string& flag, Value& value, const std::string& help,
              std::function<Value(const std::string&)> read) {
  add_read(app, flag, help, [&value, read = std::move(read)](const std::string& text) { value = read(text); });
}

template <typename Enum>
std::function<Enum(const std::string&)> word_of(const char* flag, std::map<std::string, Enum> words) {
  return [flag, words = std::move(words)](const std::string& text) {
    const auto found = words.find(text);
    if (found != words.end()) return found->second;
    std::vector<std::string> known;
    for (const auto& word : words) known.push_back(word.first);
    throw ConfigError(flag, "", fmt::format("'{}' is not known: expected {}", text, fmt::join(known, " or ")));
  };
}

DType dtype_of(const char* flag, const std::string& text) {
  const auto dtype = parse_dtype(text);
  if (!dtype) throw ConfigError(flag, "", fmt::format("'{}' is not a dtype: expected fp32, bf16, fp16, ...", text));
  return *dtype;
}

// Whole numbers only: "8", not "8.5", "-1" or "8x".
template <typename Count>
void add_count(CLI::App* app, const std::string& flag, Count& value, const std::string& help) {
  app->add_option(flag, value, help)->type_name("N")->check([](const std::string& text) -> std::string {
    if (!text.empty() && text.size() < 19 && text.find_first_not_of("0123456789") == std::string::npos) return {};
    return fmt::format("'{}' is not a whole number", text);
  });
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

// --lora-rank, --lora-targets and --modules-to-save are one thing once all flags are read.
struct LoraFlags {
  std::optional<std::uint64_t> rank;
  std::vector<std::string> targets;
  std::vector<std::string> modules_to_save;
  std::optional<DType> dtype;
  std::optional<double> dropout;
};

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

// A word, or "word=N" with N from 1.
struct CountedWord {
  std::string word;
  std::optional<std::uint64_t> count;
};

CountedWord counted_word(const std::string& flag, const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) return {text, std::nullopt};
  const std::string digits = text.substr(equals + 1);
  std::uint64_t count = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  if (error != std::errc{} || end != digits.data() + digits.size() || count == 0) {
    throw ConfigError(flag, "", fmt::format("expected a number of 1 or more behind '=', found '{}'", text));
  }
  return {text.substr(0, equals), count};
}

void set_recompute(PlanOptions& options, const std::string& text) {
  static const std::map<std::string, RecomputeKind> kinds{{"none", RecomputeKind::none},
                                                          {"selective", RecomputeKind::selective},
                                                          {"full", RecomputeKind::full},
                                                          {"every", RecomputeKind::every},
                                                          {"invert", RecomputeKind::invert}};
  const auto [word, count] = counted_word("--recompute", text);
  const auto kind = kinds.find(word);
  if (kind == kinds.end() || count.has_value() != (kind->second == RecomputeKind::every)) {
    throw ConfigError("--recompute", "",
                      fmt::format("expected none, selective, full, every=N or invert, found '{}'", text));
  }
  options.client.recompute = kind->second;
  options.client.recompute_every = count.value_or(1);
  options.setup.recompute = kind->second == RecomputeKind::full ? Recompute::full : Recompute::none;
}

void set_loss(PlanOptions& options, const std::string& text) {
  static const std::map<std::string, LossKind> kinds{
      {"eager", LossKind::eager}, {"fused", LossKind::fused}, {"chunked", LossKind::chunked}};
  const auto [word, count] = counted_word("--loss", text);
  const auto kind = kinds.find(word);
  if (kind == kinds.end() || count.has_value() != (kind->second == LossKind::chunked)) {
    throw ConfigError("--loss", "", fmt::format("expected eager, fused or chunked=N, found '{}'", text));
  }
  options.client.loss = kind->second;
  options.client.loss_chunks = count.value_or(1);
}

void add_client(CLI::App* app, PlanOptions& options) {
  constexpr const char* kGroup = "The client's code";
  add_count(app, "--seq", options.sequence, "tokens per sequence; without it activations are not counted");
  add_count(app, "--micro-batch", options.micro_batch, "sequences per micro-batch (1)");
  add_word<std::optional<Profile>>(
      app, "--profile", options.profile,
      "whose model code: hf-eager, hf-sdpa, hf-liger, megatron, torchtitan, litgpt or torchtune "
      "(hf-sdpa; engine megatron: megatron)",
      [](const std::string& text) { return std::optional(profile_named(text)); });
  add_word<std::optional<AttentionKind>>(
      app, "--attention", options.client.attention, "eager, sdpa or flash (the profile's)",
      word_of<std::optional<AttentionKind>>(
          "--attention",
          {{"eager", AttentionKind::eager}, {"sdpa", AttentionKind::sdpa}, {"flash", AttentionKind::flash}}));
  add_read(app, "--recompute",
           "what is computed again in the backward: none, selective, full, every=N or invert (none)",
           [&options](const std::string& text) { set_recompute(options, text); });
  add_read(app, "--loss", "eager, fused or chunked=N (eager)",
           [&options](const std::string& text) { set_loss(options, text); });
  for (const char* flag : {"--seq", "--micro-batch", "--profile", "--attention", "--recompute", "--loss"}) {
    app->get_option(flag)->group(kGroup);
  }
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

// What the flags of plan say besides the options themselves.
struct PlanFlags {
  PolicyFlags policy;
  LoraFlags lora;
  ConfigFlags config;
};

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

void add_plan_flags(CLI::App* app, PlanOptions& options, PlanFlags& flags) {
  Setup& setup = options.setup;
  app->add_option("MODEL", options.model, kModelHelp)->type_name("");
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
  app->add_option("--offload", options.offload,
                  "optimizer, parameters or gradients = cpu or file[:FOLDER] (nvme is another word for file); engines "
                  "deepspeed, fsdp2, megatron")
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
  add_client(app, options);
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
  app->add_flag("--json", options.json, "one JSON object on stdout and nothing else");
  app->add_flag("--verbose", options.verbose, "also the units, their layout and the programs");
}

void add_fit_flags(CLI::App* app, FitOptions& options) {
  constexpr const char* kGroup = "The question";
  std::map<std::string, FitQuestion> questions;
  for (const FitQuestion question : {FitQuestion::best, FitQuestion::micro_batch, FitQuestion::sequence,
                                     FitQuestion::model, FitQuestion::gpus, FitQuestion::cheapest}) {
    questions.emplace(name(question), question);
  }
  add_word<FitQuestion>(app, "--ask", options.question,
                        "best (set-up of these GPUs), micro-batch, seq or model (the largest), gpus (the fewest), or "
                        "cheapest (change that makes it fit) (best)",
                        word_of<FitQuestion>("--ask", std::move(questions)));
  app->add_option("--cluster", options.cluster,
                  "a cluster's name or a .json file: links, and the GPU if --gpu is not given")
      ->type_name("NAME|FILE");
  add_count(app, "--global-batch", options.global_batch,
            "sequences per step, for best (micro-batch x grad-accum x data ranks as given)");
  add_count(app, "--plans", options.most_plans, "how many set-ups are listed (10)");
  add_count(app, "--rejected", options.most_rejected, "how many of those that do not fit are listed (20)");
  for (const char* flag : {"--ask", "--cluster", "--global-batch", "--plans", "--rejected"}) {
    app->get_option(flag)->group(kGroup);
  }
}

void add_export(CLI::App* app, PlanOptions& options) {
  add_word<std::optional<ExportFormat>>(
      app, "--export", options.export_format,
      "print the set-up as a configuration file instead of the plan: deepspeed (ds_config.json), accelerate (YAML of "
      "the engine), fsdp (accelerate's, of fsdp2) or megatron (arguments)",
      word_of<std::optional<ExportFormat>>("--export", {{"accelerate", ExportFormat::accelerate},
                                                        {"deepspeed", ExportFormat::deepspeed},
                                                        {"fsdp", ExportFormat::fsdp},
                                                        {"megatron", ExportFormat::megatron}}));
}

void add_validate_flags(CLI::App* app, ValidateOptions& options) {
  app->add_option("PATH", options.paths, "files of measured runs, or folders of them (docs/validation.md)")
      ->type_name("");
  app->add_flag("--json", options.json, "one JSON object on stdout and nothing else");
}

void add_simulate_flags(CLI::App* app, SimulateOptions& options) {
  constexpr const char* kGroup = "Simulation";
  app->add_option("--cluster", options.cluster, "a cluster's name or a .json file (docs/cost_model.md) (h100)")
      ->type_name("NAME|FILE")
      ->group(kGroup);
  add_count(app, "--seed", options.seed, "of --fault random (0)");
  app->get_option("--seed")->group(kGroup);
  app->add_option("--fault", options.faults,
                  "what goes wrong: kill, stall, slow-rank, slow-link, drop, corrupt or out-of-memory, with ,rank=R "
                  ",operation=K ,seconds=S ,factor=F ,bytes=B; or random; may be repeated")
      ->type_name("SPEC")
      ->allow_extra_args(false)
      ->group(kGroup);
  app->add_flag("--compare-stages", options.compare_stages, "ZeRO stages 0 to 3 side by side")->group(kGroup);
  app->add_option("--trace", options.trace, "write a trace for ui.perfetto.dev")->type_name("FILE")->group(kGroup);
  app->add_option("--plot", options.plot, "write a chart (SVG): memory over the step, or the stages compared")
      ->type_name("FILE")
      ->group(kGroup);
}

// Completes commands, flags, and the names of models and GPUs. Made from the parser itself, so that it is never behind.
std::string completion_script(const CLI::App& app) {
  std::string commands;
  std::string cases;
  for (const CLI::App* command : app.get_subcommands({})) {
    commands += command->get_name() + " ";
    std::string flags;
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& flag : option->get_lnames()) flags += "--" + flag + " ";
    }
    cases += fmt::format("    {}) words=\"{}\" ;;\n", command->get_name(), flags);
  }
  return fmt::format(R"sh(_memcalc() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  case $before in
    --gpu) COMPREPLY=($(compgen -W "$(memcalc gpus --names 2>/dev/null)" -- "$word")); return ;;
    --*-file|--*-config|--megatron-args) COMPREPLY=($(compgen -f -- "$word")); return ;;
  esac
  case ${{COMP_WORDS[1]}} in
{}    *) words="{}--help --version" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [[ $COMP_CWORD -ge 2 && $word != -* ]]; then
    COMPREPLY+=($(compgen -W "$(memcalc models --names 2>/dev/null)" -- "$word") $(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _memcalc memcalc
)sh",
                     cases, commands);
}

std::set<std::string> given_flags(const CLI::App& command) {
  std::set<std::string> given;
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() > 0) given.insert(option->get_name());
  }
  return given;
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
  options.setup.policy = resolve(flags.policy);
  options.lora = resolve(flags.lora);
  options.client.adapter_dropout = flags.lora.dropout.value_or(0);
  options.setup.parallel.vocabulary_multiple =
      options.vocabulary_multiple.value_or(options.engine == Engine::megatron ? 128 : 1);
  divide_world(options.setup);
  if (config) apply_batch(*config, given, options);
  validate(options.setup);
  apply_engine_flags(options, given);
}

void finish(PlanOptions& options, PlanFlags& flags, const std::set<std::string>& given) {
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

// The commands with their flags, and what they fill.
struct Parser {
  CommandLine line;
  PlanFlags flags;
  CLI::App app{"memcalc sizes a training run: what each GPU holds, where, and why.", "memcalc"};
  CLI::App* plan = app.add_subcommand("plan", "What one GPU of each kind holds: a table, or --json");
  CLI::App* explain = app.add_subcommand("explain", "The same numbers, each with its formula, inputs and source");
  CLI::App* fit = app.add_subcommand("fit", "The inverse questions: what fits, and which set-up is fastest");
  CLI::App* simulate = app.add_subcommand("simulate", "One step on virtual ranks: time, traffic and memory of each");
  CLI::App* validate = app.add_subcommand("validate", "Predicted against measured, row by row");
  CLI::App* models = app.add_subcommand("models", "The presets");
  CLI::App* gpus = app.add_subcommand("gpus", "The GPUs that are known by name");
  CLI::App* completion = app.add_subcommand("completion", "Bash completion: eval \"$(memcalc completion)\"");

  Parser();
  // Throws CLI::ParseError (CLI::Success after --help or --version) and ConfigError.
  void read(std::vector<std::string> words);
};

Parser::Parser() {
  app.set_version_flag("--version", std::string("memcalc ") + kVersion);
  app.require_subcommand(1);
  app.footer(kFooter);
  app.get_formatter()->column_width(34);
  for (CLI::App* command : {plan, explain, fit, simulate}) {
    add_plan_flags(command, line.plan, flags);
    command->footer(command == simulate ? kSimulateFooter : command == fit ? kFitFooter : kFooter);
  }
  add_fit_flags(fit, line.fit);
  add_validate_flags(validate, line.validate);
  add_export(plan, line.plan);
  add_simulate_flags(simulate, line.simulate);
  for (CLI::App* command : {models, gpus}) {
    command->add_flag("--json", line.list.json, "one JSON object on stdout and nothing else");
    command->add_flag("--names", line.list.names, "the names, one a line");
  }
  gpus->add_flag("--detect", line.list.detect,
                 "the GPUs of this machine instead, and which of the known ones they are");
  gpus->add_option("--gpu-file", line.list.gpu_files, "a table of more GPUs; may be repeated")
      ->type_name("FILE")
      ->allow_extra_args(false);
}

void Parser::read(std::vector<std::string> words) {
  constexpr const char* kCommands = "plan, explain, fit, simulate, validate, models, gpus or completion";
  if (words.empty()) {
    throw ConfigError("", "", fmt::format("expected a command: {} (memcalc --help)", kCommands));
  }
  const std::vector<CLI::App*> commands = app.get_subcommands({});
  if (!words[0].starts_with('-') &&
      std::none_of(commands.begin(), commands.end(), [&](const CLI::App* c) { return c->check_name(words[0]); })) {
    throw ConfigError("", "", fmt::format("'{}' is no command: expected {}", words[0], kCommands));
  }
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  app.parse(std::move(words));
  line.command = *explain    ? Command::explain
                 : *fit      ? Command::fit
                 : *simulate ? Command::simulate
                 : *validate ? Command::validate
                 : *models   ? Command::models
                 : *gpus     ? Command::gpus
                             : Command::plan;
  if (*fit) line.fit.given = given_flags(*fit);
  for (const CLI::App* command : {plan, explain, fit, simulate}) {
    if (!*command) continue;
    std::set<std::string> given = given_flags(*command);
    if (command == simulate) given.insert("--engine");  // our own optimizer, whatever a file says
    finish(line.plan, flags, given);
  }
  if (*validate && line.validate.paths.empty())
    throw ConfigError("PATH", "", "expected a file of measured runs or a folder");
  // What a file says is not varied, either.
  for (const auto& [flag, origin] : line.plan.origins) line.fit.given.insert(flag);
}

// CLI11 writes "--flag: problem".
ConfigError config_error(const CLI::ParseError& error) {
  const std::string text = error.what();
  const std::size_t colon = text.starts_with("--") ? text.find(": ") : std::string::npos;
  if (colon == std::string::npos) return {"", "", text};
  return {text.substr(0, colon), "", text.substr(colon + 2)};
}

}  // namespace

ClientSetup PlanOptions::whole_client() const {
  ClientSetup whole = client;
  whole.profile = profile.value_or(engine == Engine::megatron ? Profile::megatron : Profile::hf_sdpa);
  whole.sequence = sequence.value_or(0);
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

CommandLine read_command_line(std::vector<std::string> words) {
  Parser parser;
  try {
    parser.read(std::move(words));
  } catch (const CLI::ParseError& error) {
    throw config_error(error);
  } catch (const ConfigError& error) {
    throw told_of_file(error, parser.line.plan);
  }
  return std::move(parser.line);
}

ParseResult parse_command_line(int argc, char** argv) {
  ParseResult result;
  Parser parser;
  try {
    parser.read({argv + 1, argv + argc});
    if (*parser.completion) {
      fmt::print("{}", completion_script(parser.app));
      result.exit_status = 0;
    }
    result.command_line = std::move(parser.line);
  } catch (const CLI::Success& success) {
    parser.app.exit(success);
    result.exit_status = 0;
  } catch (const CLI::ParseError& error) {
    std::cerr << "memcalc: " << error.what() << "\n";
    result.exit_status = 2;
  } catch (const ConfigError& error) {
    const ConfigError told = told_of_file(error, parser.line.plan);
    std::cerr << "memcalc: " << told.what() << "\n";
    result.exit_status =
        told.source().empty() || told.source() == "MODEL" || told.source() == "PATH" ? 2 : exit_status_of(told);
  } catch (const Error& error) {  // a configuration file that cannot be read
    std::cerr << "memcalc: " << error.what() << "\n";
    result.exit_status = 3;
  }
  return result;
}

}  // namespace shardplan::memcalc
