#include "planner/tensor_split.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <span>
#include <utility>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {
namespace {

using Words = std::span<const std::string_view>;

bool is_one_of(Words words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

constexpr std::array<std::string_view, 53> kColumn{"q_proj",
                                                   "k_proj",
                                                   "v_proj",
                                                   "qkv_proj",
                                                   "query",
                                                   "key",
                                                   "value",
                                                   "query_key_value",
                                                   "c_attn",
                                                   "q_attn",
                                                   "Wqkv",
                                                   "wqkv",
                                                   "W_pack",
                                                   "q_b_proj",
                                                   "kv_b_proj",
                                                   "q",
                                                   "k",
                                                   "v",
                                                   "q_lin",
                                                   "k_lin",
                                                   "v_lin",
                                                   "sinks",
                                                   "gate_proj",
                                                   "up_proj",
                                                   "gate_up_proj",
                                                   "fc1",
                                                   "c_fc",
                                                   "fc_in",
                                                   "lin1",
                                                   "dense_h_to_4h",
                                                   "w1",
                                                   "w3",
                                                   "v1",
                                                   "wi",
                                                   "wi_0",
                                                   "wi_1",
                                                   "linear_qkv",
                                                   "linear_fc1",
                                                   "qkv",
                                                   "in_proj",
                                                   "conv1d",
                                                   "dt_proj",
                                                   "dt_bias",
                                                   "A_log",
                                                   "D",
                                                   "wq",
                                                   "linear_q",
                                                   "linear_kv",
                                                   "linear_q_proj",
                                                   "linear_q_up_proj",
                                                   "linear_kv_up_proj",
                                                   "eh_proj",
                                                   "conv1d_weight"};
constexpr std::array<std::string_view, 15> kRow{"o_proj",        "out_proj",  "wo",          "c_proj",     "dense",
                                                "dense_4h_to_h", "down_proj", "fc2",         "fc_out",     "w2",
                                                "out_lin",       "lin2",      "linear_proj", "linear_fc2", "o"};
constexpr std::array<std::string_view, 10> kWords{"embed_tokens", "wte",      "word_embeddings", "tok_embeddings",
                                                  "embed_in",     "shared",   "embeddings",      "tokens_embed",
                                                  "embed",        "embedding"};
// Matrices that are whole on purpose.
constexpr std::array<std::string_view, 15> kWhole{"gate",
                                                  "router",
                                                  "q_a_proj",
                                                  "kv_a_proj_with_mqa",
                                                  "layer",
                                                  "classifier",
                                                  "lora_A",
                                                  "shared_expert_gate",
                                                  "relative_attention_bias",
                                                  "linear_q_down_proj",
                                                  "linear_kv_down_proj",
                                                  "fc1_latent_proj",
                                                  "fc2_latent_proj",
                                                  "gate_weight",
                                                  "layer_norm_weight"};

std::vector<std::string_view> components_of(std::string_view name) {
  std::vector<std::string_view> parts;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    parts.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<std::uint64_t> as_number(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// "weight" or "bias", or of one of several experts in a grouped linear module: "weight12" (Transformer Engine).
bool is_weight_or_bias(std::string_view name) {
  for (const std::string_view word : {"weight", "bias"}) {
    if (name == word || (name.starts_with(word) && as_number(name.substr(word.size())))) return true;
  }
  return false;
}

// The module that a tensor is of, and which matrix of an adapter it is, if it is one.
struct Named {
  std::string_view module;
  std::string_view parent;
  std::string_view adapter;  // "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"
};

Named named(std::string_view name) {
  std::vector<std::string_view> parts = components_of(name);
  Named result;
  const auto adapter = std::find_if(parts.begin(), parts.end(), [](auto part) { return part.starts_with("lora_"); });
  const auto copy = std::find(parts.begin(), parts.end(), "modules_to_save");
  if (adapter != parts.end()) {
    result.adapter = *adapter;
    parts.erase(adapter, parts.end());
  } else if (copy != parts.end()) {
    parts.erase(copy, parts.end());
  } else if (is_weight_or_bias(parts.back())) {
    parts.pop_back();
  }
  if (!parts.empty()) {
    result.module = parts.back();
    if (result.module.ends_with("_bias") && result.module != "dt_bias") result.module.remove_suffix(5);
  }
  if (parts.size() > 1) result.parent = parts[parts.size() - 2];
  return result;
}

// The number of the expert that has this tensor to itself: "experts.3.w1.weight", Megatron-LM's
// "experts.local_experts.3.linear_fc1.weight" and "experts.linear_fc1.weight3".
std::optional<std::uint64_t> expert_number(std::string_view name) {
  const auto parts = components_of(name);
  auto experts = std::find(parts.begin(), parts.end(), "experts");
  if (experts == parts.end() || experts + 1 == parts.end()) return std::nullopt;
  if (experts[1] == "local_experts" && experts + 2 != parts.end()) ++experts;
  if (const auto number = as_number(experts[1])) return number;
  for (const std::string_view word : {"weight", "bias"}) {
    if (parts.back().starts_with(word)) return as_number(parts.back().substr(word.size()));
  }
  return std::nullopt;
}

std::uint64_t experts_in(const UnitRun& run) {
  std::uint64_t experts = 0;
  for (const Tensor& tensor : run.tensors) {
    if (const auto number = expert_number(tensor.name)) experts = std::max(experts, *number + 1);
  }
  return experts;
}

std::uint64_t find_vocabulary(const Catalog& catalog) {
  for (const UnitRun& run : catalog.runs) {
    if (run.numbered) continue;
    for (const Tensor& tensor : run.tensors) {
      const Named name = named(tensor.name);
      if (name.adapter.empty() && tensor.shape.size() == 2 && is_one_of(kWords, name.module)) return tensor.shape[0];
    }
  }
  return 0;
}

}  // namespace

bool names_expert(std::string_view name) {
  const auto parts = components_of(name);
  return std::find(parts.begin(), parts.end(), "experts") != parts.end();
}

bool stores_transposed(const UnitRun& run) {
  // c_fc goes from the hidden features to more of them.
  return std::any_of(run.tensors.begin(), run.tensors.end(), [](const Tensor& tensor) {
    return tensor.name.ends_with("c_fc.weight") && tensor.shape.size() == 2 && tensor.shape[1] > tensor.shape[0];
  });
}

TensorSplit::TensorSplit(const Catalog& catalog, Parallelism parallelism)
    : model_(catalog.name), parallelism_(std::move(parallelism)), vocabulary_(find_vocabulary(catalog)) {}

TensorSplit::Axis TensorSplit::axis_of(std::string_view name) {
  const Named parts = named(name);
  // Of Mamba-2, behind the scan, whose channels are shared out (core/ssm/mamba_mixer.py).
  if (parts.module == "norm" && parts.parent == "mixer") return Axis::column;
  if (parts.module == "x_proj" && parts.parent == "mixer") return Axis::row;
  // BERT and its kin call three linear modules of a block "dense".
  if (parts.module == "dense" && parts.parent == "intermediate") return Axis::column;
  if (is_one_of(kColumn, parts.module)) return Axis::column;
  return is_one_of(kRow, parts.module) ? Axis::row : Axis::whole;
}

std::optional<std::size_t> TensorSplit::split_dim(const UnitRun& run, const Tensor& tensor) const {
  const Axis axis = axis_of(tensor.name);
  const std::string_view adapter = named(tensor.name).adapter;
  if (axis == Axis::whole) return std::nullopt;
  if (adapter == "lora_A") return axis == Axis::row ? std::optional<std::size_t>(1) : std::nullopt;
  if (adapter == "lora_B") return axis == Axis::column ? std::optional<std::size_t>(0) : std::nullopt;
  const bool expert = names_expert(tensor.name) && !expert_number(tensor.name);
  const bool bias = tensor.name.ends_with("bias") && !tensor.name.ends_with("dt_bias");
  if (bias) return axis == Axis::column ? std::optional(tensor.shape.size() - 1) : std::nullopt;
  if (expert && tensor.shape.size() == 3) return axis == Axis::column ? 2 : 1;  // [experts, input, output]
  if (expert) return 0;  // the experts one below the other, each as its features inside x the hidden ones
  if (tensor.shape.size() < 2)
    return axis == Axis::column && !tensor.shape.empty() ? std::optional<std::size_t>(0) : std::nullopt;
  const bool first = (axis == Axis::column) != (stores_transposed(run) && tensor.shape.size() == 2);
  return first ? 0 : 1;
}

void TensorSplit::divide_dim(const UnitRun& run, Tensor& tensor, std::size_t dim, std::uint64_t ranks,
                             const char* flag) const {
  std::uint64_t& size = tensor.shape[dim];
  if (size % ranks != 0) {
    throw ConfigError(flag, "",
                      fmt::format("{} ranks cannot share out '{}' of {}: its dim {} is {}", ranks,
                                  tensor_name(run, 0, tensor), model_, dim, size));
  }
  size /= ranks;
}

void TensorSplit::split_vocabulary(Tensor& tensor) const {
  const std::size_t dim = named(tensor.name).adapter == "lora_embedding_A" ? 1 : 0;
  if (vocabulary_ == 0 || tensor.shape.size() <= dim || tensor.shape[dim] != vocabulary_) return;
  const std::uint64_t multiple = checked_multiply(parallelism_.vocabulary_multiple, parallelism_.tensor);
  tensor.shape[dim] = round_up(vocabulary_, multiple) / parallelism_.tensor;
}

void TensorSplit::split_in_block(const UnitRun& run, Tensor& tensor, bool fused_expert) const {
  const bool expert = names_expert(tensor.name);
  const std::uint64_t ranks = expert ? resolved_expert_tensor(parallelism_) : parallelism_.tensor;
  const auto dim = split_dim(run, tensor);
  if (fused_expert) divide_dim(run, tensor, 0, parallelism_.expert, "--ep");
  if (dim) divide_dim(run, tensor, *dim, ranks, expert ? "--etp" : "--tp");
  tensor.expert = expert && experts_apart(parallelism_);
}

std::vector<Tensor> TensorSplit::part_of(const UnitRun& run) const {
  const std::uint64_t experts = experts_in(run);
  const std::uint64_t ranks = parallelism_.expert;
  if (experts % ranks != 0) {
    throw ConfigError("--ep", "",
                      fmt::format("{} ranks cannot share out the {} experts of {}", ranks, experts, model_));
  }
  std::vector<Tensor> part;
  part.reserve(run.tensors.size());
  for (const Tensor& whole : run.tensors) {
    const auto number = expert_number(whole.name);
    if (number && *number >= experts / ranks) continue;
    Tensor tensor = whole;
    if (run.numbered) {
      split_in_block(run, tensor, names_expert(tensor.name) && !number);
    } else {
      split_vocabulary(tensor);
    }
    part.push_back(std::move(tensor));
  }
  return part;
}

std::vector<std::string> TensorSplit::notes(const Catalog& catalog) const {
  std::vector<std::string> notes;
  const std::uint64_t multiple = checked_multiply(parallelism_.vocabulary_multiple, parallelism_.tensor);
  if (const std::uint64_t padded = round_up(vocabulary_, multiple); padded != vocabulary_) {
    notes.push_back(fmt::format("the vocabulary of {} is padded to {}, a multiple of {} x {}", vocabulary_, padded,
                                parallelism_.vocabulary_multiple, parallelism_.tensor));
  }
  if (parallelism_.tensor == 1) return notes;
  std::string example;
  std::uint64_t whole = 0;
  for (const UnitRun& run : catalog.runs) {
    for (const Tensor& tensor : run.tensors) {
      const bool matrix = run.numbered && tensor.shape.size() == 2 && !tensor.scales;
      if (!matrix || axis_of(tensor.name) != Axis::whole || is_one_of(kWhole, named(tensor.name).module)) continue;
      if (whole == 0) example = tensor_name(run, 0, tensor);
      whole += run.count;
    }
  }
  if (whole > 0) {
    notes.push_back(
        fmt::format("tensor parallelism leaves {} matrices whole on each rank, such as {}", whole, example));
  }
  return notes;
}

}  // namespace shardplan
