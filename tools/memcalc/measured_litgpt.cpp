// LitGPT: config_hub/finetune/README.md, tutorials/finetune_lora.md and tutorials/resource-tables.md.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "planner/formats/hf_config.h"
#include "planner/formats/read_model.h"
#include "tools/memcalc/measured_programs.h"
#include "tools/memcalc/measured_rows.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

struct Named {
  std::string_view row;
  std::string_view model;  // a preset, or a config.json
  std::uint64_t longest;   // tokens of Alpaca's longest sample (resource-tables.md); 0: not told
};
constexpr std::string_view kStableLmAlpha = R"({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"],
    "vocab_size": 50688, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 16, "num_attention_heads": 32,
    "max_position_embeddings": 4096, "rotary_pct": 0.25, "use_parallel_residual": true})";
constexpr std::string_view kPhi2 = R"({"model_type": "phi", "architectures": ["PhiForCausalLM"], "vocab_size": 51200,
    "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "partial_rotary_factor": 0.4})";
constexpr std::string_view kMistral02 = R"({"model_type": "mistral", "architectures": ["MistralForCausalLM"],
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": null})";
constexpr std::string_view kLlama1b =
    R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "tie_word_embeddings": true})";
constexpr std::string_view kGemma7b =
    R"({"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "vocab_size": 256000,
    "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192})";
constexpr Named kNamed[] = {{"falcon-7b", "falcon-7b", 0},
                            {"gemma-2b", "gemma-2b", 0},
                            {"gemma-7b", kGemma7b, 0},
                            {"gemma2-2b", "gemma-2-2b", 0},
                            {"gemma2-9b", "gemma-2-9b", 0},
                            {"llama-2-7b", "llama-2-7b", 0},
                            {"llama-3-8b", "llama-3-8b", 0},
                            {"llama-3.1-8b", "llama-3.1-8b", 0},
                            {"llama-3.2-1b", kLlama1b, 0},
                            {"llama-3.2-3b", "llama-3.2-3b", 0},
                            {"mistral-7b-v0.2", kMistral02, 0},
                            {"mistral-7b", "mistral-7b-v0.1", 0},
                            {"phi-2", kPhi2, 0},
                            {"phi-3", "phi-3-mini-4k", 0},
                            {"stablelm-base-alpha-3b", kStableLmAlpha, 0},
                            {"tiny-llama", "tinyllama-1.1b", 0},
                            {"1.3 B phi-1.5", "phi-1.5", 1044},
                            {"3 B StableLM Alpha", kStableLmAlpha, 1034},
                            {"7 B Llama 2", "llama-2-7b", 1304},
                            {"13 B Llama 2", "llama-2-13b", 1304},
                            {"40 B Falcon", "falcon-40b", 1079},
                            {"StableLM-3B LoRA", kStableLmAlpha, 1034},
                            {"Llama-2-7B LoRA", "llama-2-7b", 1304}};

const Named& named(const std::string& model) {
  const auto found = std::find_if(std::begin(kNamed), std::end(kNamed), [&](const Named& n) { return n.row == model; });
  if (found == std::end(kNamed)) throw NotPredicted(fmt::format("model {} is not known", model));
  return *found;
}

// lora_query, lora_value and 0.05 of dropout are what the recipes and the files of config_hub say where the row does not.
constexpr double kLoraDropout = 0.05;

std::vector<std::string> targets_of(const json::object* yaml) {
  struct Switch {
    const char* key;
    const char* target;
    bool absent;
  };
  constexpr Switch kSwitches[] = {{"lora_query", "attn.query", true}, {"lora_key", "attn.key", false},
                                  {"lora_value", "attn.value", true}, {"lora_projection", "attn.proj", false},
                                  {"lora_mlp", "mlp.*", false},       {"lora_head", "lm_head", false}};
  std::vector<std::string> targets;
  for (const Switch& one : kSwitches) {
    const json::value* value = yaml != nullptr ? yaml->if_contains(one.key) : nullptr;
    if (value != nullptr && value->is_bool() ? value->as_bool() : one.absent) targets.emplace_back(one.target);
  }
  return targets;
}

// "bnb.nf4", "bnb.nf4-dq"; empty where nothing is quantised.
std::string quantisation_of(const json::object& row, const std::string& method) {
  std::string text = text_of(row, "quantize");
  const std::string precision = text_of(row, "precision");
  if (const std::size_t plus = precision.find("+ "); plus != std::string::npos) text = precision.substr(plus + 2);
  if (text.empty() && method == "qlora") return "bnb.nf4";
  return text == "None" ? "" : text;
}

void set_quantisation(const std::string& text, PlanOptions& options) {
  if (text.empty()) return;
  if (text != "bnb.nf4" && text != "bnb.nf4-dq") throw NotPredicted(fmt::format("quantize {} is not known", text));
  options.quantize = text == "bnb.nf4" ? Quantization::nf4_single : Quantization::nf4;
  options.setup.optimizer = OptimizerKind::sgd;  // PagedAdamW: its states are managed memory, outside torch's allocator
}

std::uint64_t micro_batch_of(const json::object& row) {
  const std::string text = text_of(row, "micro_batch_size");
  return text.empty() ? count_of(row, "micro_batch_size", 1) : std::stoull(text);
}

}  // namespace

ProgramRun litgpt_run(const json::object& row) {
  const json::value* peak = row.if_contains("peak_memory");
  if (peak == nullptr || !peak->is_number()) {
    throw NotPredicted("litgpt: no peak_memory: it ran out of memory, or says nothing of it");
  }
  const std::string id = text_of(row, "id");
  std::string method = text_of(row, "method");
  if (const std::string command = text_of(row, "command"); !command.empty())
    method = command.substr(command.find('_') + 1);
  if (method.empty()) method = "lora";
  if (method.starts_with("adapter")) throw NotPredicted("adapters other than LoRA: reported, not scored");
  const bool tables = id.starts_with("litgpt-");
  const json::value* yaml_value = row.if_contains("yaml");
  const json::object* yaml = yaml_value != nullptr && yaml_value->is_object() ? &yaml_value->as_object() : nullptr;
  const std::uint64_t devices = tables            ? count_of(row, "world_size", 1)
                                : yaml != nullptr ? count_of(*yaml, "devices", 1)
                                                  : 1;

  ProgramRun run;
  run.field = "peak_allocated";
  run.measured = peak->to_number<double>() * 1e9;
  PlanOptions& options = run.options;
  options.profile = Profile::litgpt;
  options.engine = Engine::paper;
  options.gpu = tables ? "a100-40gb" : "a10g";
  options.setup.policy = policy_named("bf16");
  if (text_of(row, "precision") == "bf16-mixed") options.setup.policy = policy_named("amp-bf16");
  options.client.litgpt = tables ? LitGptVersion::of_2023 : LitGptVersion::current;
  options.micro_batch = micro_batch_of(row);
  // Rows of config_hub are named by their folder: "litgpt/gemma2-2b/lora/1xA10G".
  const std::size_t slash = id.find('/') + 1;
  const Named& model = named(tables ? text_of(row, "model") : id.substr(slash, id.find('/', slash) - slash));
  options.sequence = tables ? model.longest : count_of(row, "max_seq_length", 512);
  if (method != "full") {
    const std::uint64_t rank = tables ? 8 : yaml != nullptr ? count_of(*yaml, "lora_r", 32) : 32;
    options.lora = Lora{.rank = rank, .targets = targets_of(yaml)};
    options.client.adapter_dropout = kLoraDropout;
  }
  set_quantisation(quantisation_of(row, method), options);
  if (devices > 1) throw NotPredicted("FullyShardedDataParallel of torch's first kind is no engine");
  const bool is_config = model.model.front() == '{';
  run.model =
      is_config ? model_from_hf_config(model.model, std::string(model.row)) : find_model(std::string(model.model));
  return run;
}

}  // namespace shardplan::memcalc
