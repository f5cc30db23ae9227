// peft's method comparison (method_comparison/MetaMathQA), torchtune's README and LoRA tutorial, torchtitan's benchmarks.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "base/checked.h"
#include "planner/formats/read_model.h"
#include "tools/memcalc/measured_programs.h"
#include "tools/memcalc/measured_rows.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

struct Preset {
  std::string_view row;
  std::string_view preset;
};
constexpr Preset kPresets[] = {{"meta-llama/Llama-3.2-3B", "llama-3.2-3b"},
                               {"Llama-3.2-3B", "llama-3.2-3b"},
                               {"Llama-2-7B", "llama-2-7b"},
                               {"Llama-2-13B", "llama-2-13b"},
                               {"Llama-3.1-8B", "llama-3.1-8b"},
                               {"Llama-3.1-70B", "llama-3.1-70b"},
                               {"Llama-3.1-405B", "llama-3.1-405b"},
                               {"Llama-3-8B", "llama-3-8b"},
                               {"black-forest-labs/FLUX.2-klein-base-4B", "flux2-klein-4b"}};

Model model_of(const json::object& row) {
  const std::string name = text_of(row, "model");
  const auto found =
      std::find_if(std::begin(kPresets), std::end(kPresets), [&](const Preset& p) { return p.row == name; });
  if (found == std::end(kPresets)) throw NotPredicted(fmt::format("model {} is not known", name));
  return find_model(std::string(found->preset));
}

double number_of(const json::object& row, const char* key) {
  const json::value* value = row.if_contains(key);
  if (value == nullptr || !value->is_number()) throw NotPredicted(fmt::format("it says no {}", key));
  return value->to_number<double>();
}

const json::object* object_of(const json::object& row, const char* key) {
  const json::value* value = row.if_contains(key);
  return value != nullptr && value->is_object() ? &value->as_object() : nullptr;
}

bool flag_of(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_bool() && value->as_bool();
}

// Plain PyTorch on one GPU: parameters, gradients and AdamW's states in bf16.
ProgramRun single_gpu(const json::object& row, Profile profile) {
  ProgramRun run;
  run.model = model_of(row);
  run.options.profile = profile;
  run.options.engine = Engine::paper;
  run.options.setup.policy = policy_named("bf16");
  return run;
}

bool has_technique(const json::object& row, std::string_view word) {
  const json::value* list = row.if_contains("techniques");
  if (list == nullptr || !list->is_array()) return false;
  return std::any_of(list->as_array().begin(), list->as_array().end(), [&](const json::value& technique) {
    return technique.is_string() && std::string_view(technique.as_string()).find(word) != std::string_view::npos;
  });
}

// Of Llama-2-7B's LoRA tutorial: "q,v", "all incl. mlp+output".
std::vector<std::string> tutorial_targets(const std::string& words) {
  if (words.starts_with("all")) {
    std::vector<std::string> targets{"q_proj", "k_proj", "v_proj", "o_proj"};
    if (words.find("mlp") != std::string::npos) targets.insert(targets.end(), {"gate_proj", "up_proj", "down_proj"});
    if (words.find("output") != std::string::npos) targets.emplace_back("lm_head");
    return targets;
  }
  std::vector<std::string> targets;
  for (const auto& [letter, target] : {std::pair{'q', "q_proj"}, {'k', "k_proj"}, {'v', "v_proj"}}) {
    if (words.find(letter) != std::string::npos) targets.emplace_back(target);
  }
  return targets;
}

// Adapters of a row's peft_config.
Lora lora_of(const json::object& config, const json::object& train) {
  Lora lora{.rank = count_of(config, "r", 8)};
  const json::value* targets = config.if_contains("target_modules");
  if (targets == nullptr || targets->is_null()) {
    lora.targets = {"q_proj", "v_proj"};  // of llama: peft/utils/constants.py
  } else if (targets->is_string()) {
    lora.targets = {std::string(targets->as_string())};
  } else {
    for (const json::value& target : targets->as_array()) lora.targets.emplace_back(target.as_string());
  }
  const json::value* casts = train.if_contains("autocast_adapter_dtype");
  if (casts == nullptr || !casts->is_bool() || casts->as_bool()) lora.dtype = DType::f32;
  return lora;
}

// method_comparison/MetaMathQA/run.py
void set_texts(const json::object& train, PlanOptions& options) {
  options.sequence = count_of(train, "max_seq_length", 768);
  options.client.mask = MaskKind::padded;  // batches of different lengths
  options.client.keeps_outputs = true;     // `outputs = model(**batch)` in the loop
  // Of each 80 samples the longest come first (utils.py, BucketIterator), and the cache is emptied after every tenth step, so
  // before each of them.
  options.client.empties_cache = true;
}

// method_comparison/image-gen/run.py: texts and images are encoded before the training, and what encoded them leaves the GPU. The
// model that compares images, in fp32, stays.
void set_images(const json::object& train, ProgramRun& run) {
  constexpr Bytes kHalf{2};  // bf16
  const json::value* prompts = train.if_contains("instance_prompts");
  if (prompts == nullptr || !prompts->is_array()) throw NotPredicted("it does not say how many images there are");
  if (text_of(train, "dino_model_id") != "facebook/dinov2-base")
    throw NotPredicted(fmt::format("model {} is not known", text_of(train, "dino_model_id")));
  PlanOptions& options = run.options;
  options.sequence = count_of(train, "max_sequence_length", 512);
  options.client.image_height = options.client.image_width = count_of(train, "resolution", 512);
  options.client.empties_cache = true;  // behind each evaluation; between them all steps are alike
  const std::uint64_t all = prompts->as_array().size();
  const std::uint64_t held_back = checked_add(count_of(train, "valid_size", 2), count_of(train, "test_size", 4));
  if (all <= held_back) throw NotPredicted(fmt::format("of its {} images {} are held back", all, held_back));
  const std::uint64_t kept = all - held_back;
  const std::uint64_t side = options.client.image_height / 16;
  // Three layers of Qwen3-4B.
  const std::uint64_t texts = checked_multiply(checked_multiply(kept, *options.sequence), 7680);
  const std::uint64_t latents = checked_multiply(checked_multiply(kept, 128), checked_multiply(side, side));
  run.beside = bytes_for(DType::f32, parameter_elements(find_model("dinov2-base").catalog)) + kHalf * (texts + latents);
}

}  // namespace

ProgramRun peft_run(const json::object& row) {
  const json::object* config = object_of(row, "peft_config");
  const std::string type = config != nullptr ? text_of(*config, "peft_type") : "";
  if (config != nullptr && type != "LORA") throw NotPredicted("adapters other than LoRA: reported, not scored");
  if (config != nullptr && flag_of(*config, "use_dora"))
    throw NotPredicted("adapters other than LoRA (DoRA): reported, not scored");
  const json::object* train = object_of(row, "train_config");
  if (train == nullptr) throw NotPredicted("it says no train_config");
  if (flag_of(*train, "compile") || flag_of(*train, "use_amp")) throw NotPredicted("compiled, or autocast");
  const std::string optimizer = text_of(*train, "optimizer_type");
  if (optimizer != "AdamW") throw NotPredicted(fmt::format("optimizer {} is not known here: AdamW is", optimizer));
  const json::object* passed = object_of(*train, "optimizer_kwargs");
  ProgramRun run = single_gpu(row, Profile::hf_sdpa);
  PlanOptions& options = run.options;
  run.field = "peak_reserved";
  run.measured = number_of(row, "accelerator_memory_max_bytes");
  options.client.fresh_gradients = true;
  options.client.roots_at_once = passed == nullptr || !flag_of(*passed, "fused");  // torch's own choice is foreach
  options.gpu = "l40s";
  options.micro_batch = count_of(*train, "batch_size", 4);
  if (text_of(row, "id").find("image-gen") == std::string::npos) {
    set_texts(*train, options);
  } else {
    set_images(*train, run);
  }
  if (flag_of(*train, "use_gc")) options.client.recompute = RecomputeKind::full;
  if (config == nullptr) return run;
  options.lora = lora_of(*config, *train);
  const json::value* dropout = config->if_contains("lora_dropout");
  if (dropout != nullptr && dropout->is_number()) options.client.adapter_dropout = dropout->to_number<double>();
  return run;
}

ProgramRun torchtune_run(const json::object& row) {
  const std::string technique = text_of(row, "technique_cumulative");
  const json::value* compiled = row.if_contains("compiled");
  if ((compiled != nullptr && compiled->is_bool() && compiled->as_bool()) ||
      (!technique.empty() && technique != "Baseline")) {
    throw NotPredicted("compiled: reported, not scored");
  }
  // Alpaca's longest sample in Llama 2's tokens (LitGPT's resource-tables.md); Llama 3's has not been published.
  constexpr std::uint64_t kAlpacaLongest = 1304;
  ProgramRun run = single_gpu(row, Profile::torchtune);
  PlanOptions& options = run.options;
  run.field = "peak_allocated";
  run.measured = number_of(row, "peak_memory") * (text_of(row, "unit").starts_with("GiB") ? kGiB : 1e9);
  options.gpu = "a100-80gb";
  options.micro_batch = count_of(row, "batch_size", 2);
  options.sequence = kAlpacaLongest;
  if (technique == "Baseline") {
    throw NotPredicted("the lengths of its samples are not known: Alpaca, neither packed nor cut, in Llama 3's tokens");
  }
  options.client.recompute = RecomputeKind::full;  // enable_activation_checkpointing of 7B_lora_single_device.yaml
  const std::string method = text_of(row, "method");
  if (method.find("QLoRA") != std::string::npos) options.quantize = Quantization::nf4;
  options.lora = Lora{.rank = count_of(row, "lora_rank", 8), .targets = tutorial_targets(text_of(row, "lora_modules"))};
  options.client.adapter_dropout = 0.05;  // its lora_dropout
  return run;
}

// In a pipeline the local batch is cut into micro-batches, whose number the tables leave out.
void set_axes(const json::object& row, Setup& setup) {
  const json::object* parallel = object_of(row, "parallel");
  const auto ranks = [&](const char* axis) { return parallel == nullptr ? 1 : count_of(*parallel, axis, 1); };
  if (ranks("pp") > 1) throw NotPredicted("the number of its micro-batches is not published");
  setup.parallel.tensor = ranks("tp");
  setup.parallel.context = ranks("cp");
  setup.world_size = count_of(row, "world_size", 8) / setup.parallel.tensor;
}

ProgramRun torchtitan_run(const json::object& row) {
  for (const char* word : {"compile", "Float8"}) {
    if (has_technique(row, word)) throw NotPredicted(fmt::format("{}: reported, not scored", word));
  }
  ProgramRun run;
  run.model = model_of(row);
  run.field = "peak_reserved";
  run.measured = number_of(row, "peak_memory") * kGiB;
  PlanOptions& options = run.options;
  options.profile = Profile::torchtitan;
  options.engine = Engine::fsdp2;
  options.gpu = text_of(row, "gpu").starts_with("H200") ? "h200-141gb" : "h100-80gb";
  options.setup.policy = policy_named("bf16-mixed");
  options.setup.stage = 3;
  options.micro_batch = count_of(row, "local_batch_size", 1);
  options.sequence = count_of(row, "seq_len", 8192);
  set_axes(row, options.setup);
  set_torchtitan(options);
  const std::string recompute = text_of(row, "activation_checkpointing");
  if (recompute == "full") options.client.recompute = RecomputeKind::full;
  if (recompute == "selective op") options.client.recompute = RecomputeKind::selective;
  return run;
}

ProgramRun program_run(const json::object& row) {
  const std::string framework = text_of(row, "framework");
  if (framework == "litgpt") return litgpt_run(row);
  if (framework == "torchtune") return torchtune_run(row);
  if (framework == "torchtitan") return torchtitan_run(row);
  if (framework.starts_with("huggingface/peft")) return peft_run(row);
  throw NotPredicted(fmt::format("profile of {} is not known yet", framework));
}

std::string text_of(const json::object& row, std::string_view key) {
  const json::value* value = row.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->as_string()) : std::string();
}

std::uint64_t count_of(const json::object& row, std::string_view key, std::uint64_t absent) {
  const json::value* value = row.if_contains(key);
  return value != nullptr && value->is_number() ? value->to_number<std::uint64_t>() : absent;
}

}  // namespace shardplan::memcalc
