#include "planner/lora.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/glob.h"
#include "planner/tensor_split.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kMostUnits = 1'000'000;
constexpr std::string_view kAllLinear = "all-linear";
constexpr std::uint64_t kScaleBlock = 64;         // elements that share a scale
constexpr std::uint64_t kNestedScaleBlock = 256;  // scales that share one
constexpr std::uint64_t kCodes = 16;              // of 4 bits

std::string_view last_component(std::string_view name) {
  return name.substr(name.rfind('.') + 1);  // npos + 1 is 0
}

// The name without the tensor's own: of "a.b.weight", "a.b".
std::string_view module_of(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? name : name.substr(0, dot);
}

bool is_matrix(const Tensor& tensor) {
  return tensor.shape.size() == 2 && tensor.name.ends_with(".weight") && !tensor.scales;
}

bool matches(std::string_view glob, std::string_view module) {
  return glob_matches(glob, module) || glob_matches(fmt::format("*.{}", glob), module);
}

// Which globs have matched.
class Globs {
 public:
  Globs(const std::vector<std::string>& globs, const char* flag) : globs_(globs), flag_(flag), used_(globs.size()) {}

  // `adaptable`: one of those that all-linear means.
  bool match(std::string_view module, bool adaptable) {
    bool any = false;
    for (std::size_t i = 0; i < globs_.size(); ++i) {
      const bool hit = globs_[i] == kAllLinear ? adaptable : matches(globs_[i], module);
      if (hit) used_[i] = true;
      any = any || hit;
    }
    return any;
  }

  void require_used(const Catalog& catalog) const {
    for (std::size_t i = 0; i < globs_.size(); ++i) {
      if (used_[i]) continue;
      std::set<std::string_view> known;
      for (const UnitRun& run : catalog.runs) {
        for (const Tensor& tensor : run.tensors) {
          if (is_matrix(tensor)) known.insert(last_component(module_of(tensor.name)));
        }
      }
      throw ConfigError(flag_, "",
                        fmt::format("'{}' matches no linear module or embedding of {}: expected some of {}", globs_[i],
                                    catalog.name, fmt::join(known, ", ")));
    }
  }

 private:
  const std::vector<std::string>& globs_;
  const char* flag_;
  std::vector<bool> used_;
};

Tensor adapter(std::string name, std::uint64_t rows, std::uint64_t columns, std::optional<DType> dtype) {
  return {.name = std::move(name), .shape = {rows, columns}, .dtype = dtype};
}

void push_adapters(std::vector<Tensor>& tensors, std::string_view module, const Tensor& weight, const Lora& lora,
                   bool transposed) {
  const std::uint64_t rank = lora.rank;
  const std::uint64_t first = weight.shape[0];
  const std::uint64_t second = weight.shape[1];
  if (names_embedding(module)) {
    tensors.push_back(adapter(fmt::format("{}.lora_embedding_A.default", module), rank, first, lora.dtype));
    tensors.push_back(adapter(fmt::format("{}.lora_embedding_B.default", module), second, rank, lora.dtype));
    return;
  }
  tensors.push_back(
      adapter(fmt::format("{}.lora_A.default.weight", module), rank, transposed ? first : second, lora.dtype));
  tensors.push_back(
      adapter(fmt::format("{}.lora_B.default.weight", module), transposed ? second : first, rank, lora.dtype));
}

// Routers that are classes of their own, with a weight, and no linear modules.
bool is_bare_router(const Catalog& catalog, std::string_view module) {
  const std::string_view name = last_component(module);
  const bool deepseek = catalog.family.starts_with("deepseek") || catalog.family.starts_with("kimi");
  return (deepseek && name == "gate") || (catalog.family == "gpt_oss" && name == "router");
}

// Rows of the largest table of embeddings, which is that of words.
std::uint64_t rows_of_words(const Catalog& catalog) {
  std::uint64_t rows = 0;
  for (const UnitRun& run : catalog.runs) {
    for (const Tensor& tensor : run.tensors) {
      const bool table = is_matrix(tensor) && names_embedding(module_of(tensor.name));
      if (table && tensor.name.find("position") == std::string::npos) rows = std::max(rows, tensor.shape[0]);
    }
  }
  return rows;
}

struct Adapted {
  const Catalog& catalog;
  const Lora& lora;
  Globs targets;
  Globs saved;
  std::uint64_t words = rows_of_words(catalog);

  // Every linear module but the head that says words, and the classifier of texts, which peft with the task of the model's
  // class saves whole instead: --modules-to-save (peft tuners/tuners_utils.py, _maybe_include_all_linear_layers).
  bool is_adaptable(const UnitRun& run, std::string_view module, const Tensor& weight) const {
    if (names_embedding(module) || is_bare_router(catalog, module)) return false;
    const bool says_words = !weight.tied_to.empty() || weight.shape[0] == words;
    const std::string_view first = module.substr(0, module.find('.'));
    const bool classifies = words > 0 && (first == "score" || first == "classifier");
    return run.numbered || (!says_words && !classifies);
  }
};

// The outermost module of the unit that is saved as a whole and holds this one; empty if none is.
std::string_view saved_module(const std::string& above, std::string_view module, Globs& saved) {
  for (std::size_t end = module.find('.');; end = module.find('.', end + 1)) {
    const std::string_view outer = module.substr(0, end);
    if (saved.match(above + std::string(outer), false)) return outer;
    if (end == std::string_view::npos) return {};
  }
}

// The tensors of one unit of the run, with what is added behind each module.
std::vector<Tensor> adapt_unit(const UnitRun& run, std::uint64_t index, Adapted& adapted) {
  const bool transposed = stores_transposed(run);
  std::vector<Tensor> result;
  for (std::size_t begin = 0, end = 0; begin < run.tensors.size(); begin = end) {
    const std::string_view module = module_of(run.tensors[begin].name);
    for (end = begin; end < run.tensors.size() && module_of(run.tensors[end].name) == module; ++end) {
      result.push_back(run.tensors[end]);
      result.back().trainable = false;
    }
    const std::string above = run.numbered ? fmt::format("{}.{}.", run.name, run.first_number + index) : "";
    const auto first = run.tensors.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = run.tensors.begin() + static_cast<std::ptrdiff_t>(end);
    const auto weight = std::find_if(first, last, is_matrix);
    if (weight != last &&
        adapted.targets.match(above + std::string(module), adapted.is_adaptable(run, module, *weight))) {
      push_adapters(result, module, *weight, adapted.lora, transposed);
    }
    const std::string_view saved = saved_module(above, module, adapted.saved);
    if (saved.empty() || run.tensors[begin].name == saved) continue;
    for (auto original = first; original != last; ++original) {
      Tensor copy = *original;
      copy.name = fmt::format("{}.modules_to_save.default.{}", saved, original->name.substr(saved.size() + 1));
      copy.tied_to.clear();
      copy.trainable = true;
      result.push_back(std::move(copy));
    }
  }
  return result;
}

bool is_quantizable(const Catalog& catalog, const UnitRun& run, const Tensor& tensor, bool heads) {
  const bool head = !heads && !run.numbered && &run == &catalog.runs.back();
  const std::string_view module = module_of(tensor.name);
  return is_matrix(tensor) && !tensor.trainable && !tensor.dtype && tensor.tied_to.empty() && !head &&
         !names_embedding(module) && !is_bare_router(catalog, module);
}

Tensor scale(const Tensor& of, std::string_view what, Shape shape, DType dtype) {
  Tensor tensor{.name = fmt::format("{}.{}", of.name, what), .shape = std::move(shape), .dtype = dtype};
  tensor.trainable = false;
  tensor.expert = of.expert;
  tensor.scales = true;
  return tensor;
}

void push_scales(std::vector<Tensor>& tensors, const Tensor& weight, Quantization quantization, bool transposed) {
  if (quantization == Quantization::int8) {
    tensors.push_back(scale(weight, "SCB", {weight.shape[transposed ? 1 : 0]}, DType::f32));
    return;
  }
  const std::uint64_t scales = divide_up(elements(weight.shape), kScaleBlock);
  if (quantization == Quantization::nf4_single) {
    tensors.push_back(scale(weight, "absmax", {scales}, DType::f32));
    tensors.push_back(scale(weight, "quant_map", {kCodes}, DType::f32));
    return;
  }
  tensors.push_back(scale(weight, "absmax", {scales}, DType::u8));
  tensors.push_back(scale(weight, "nested_absmax", {divide_up(scales, kNestedScaleBlock)}, DType::f32));
  tensors.push_back(scale(weight, "nested_offset", {}, DType::f32));
  tensors.push_back(scale(weight, "quant_map", {kCodes}, DType::f32));
}

bool any_tensor(const Catalog& catalog, bool (*matches)(const Tensor&)) {
  return std::any_of(catalog.runs.begin(), catalog.runs.end(),
                     [&](const UnitRun& run) { return std::any_of(run.tensors.begin(), run.tensors.end(), matches); });
}

}  // namespace

bool names_embedding(std::string_view name) {
  if (name.ends_with(".weight")) name = module_of(name);
  const std::string_view word = last_component(name);
  // Linear modules beside tables: of GPT-NeoX, Electra, ALBERT, DeBERTa, diffusion transformers.
  constexpr std::array<std::string_view, 6> kLinear{"embed_out",  "embeddings_project", "embedding_hidden_mapping_in",
                                                    "embed_proj", "context_embedder",   "x_embedder"};
  if (std::find(kLinear.begin(), kLinear.end(), word) != kLinear.end()) return false;
  if (word.find("unembed") != std::string_view::npos) return false;
  constexpr std::array<std::string_view, 5> kTables{"wte", "wpe", "shared", "relative_attention_bias",
                                                    "rel_embeddings"};
  return word.find("embed") != std::string_view::npos ||
         std::find(kTables.begin(), kTables.end(), word) != kTables.end();
}

void add_lora(Catalog& catalog, const Lora& lora) {
  if (lora.rank == 0) throw ConfigError("--lora-rank", "", "expected 1 or more");
  if (lora.targets.empty()) throw ConfigError("--lora-targets", "", "expected the names of modules, or all-linear");
  if (catalog.count_only || unit_count(catalog) > kMostUnits) {
    throw ConfigError("--lora-rank", "", fmt::format("needs a model of at most {} units", kMostUnits));
  }
  Adapted adapted{catalog, lora, Globs(lora.targets, "--lora-targets"),
                  Globs(lora.modules_to_save, "--modules-to-save")};
  CatalogBuilder builder(catalog.name, catalog.family);
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      std::vector<Tensor> tensors = adapt_unit(run, i, adapted);
      if (run.numbered) {
        builder.add_run(run.name, run.first_number + i, 1, std::move(tensors));
        continue;
      }
      builder.begin_unit(run.name);
      for (Tensor& tensor : tensors) builder.add(std::move(tensor));
    }
  }
  adapted.targets.require_used(catalog);
  adapted.saved.require_used(catalog);
  catalog.runs = builder.finish().runs;
}

std::string_view name(Quantization quantization) {
  switch (quantization) {
    case Quantization::nf4:
      return "nf4";
    case Quantization::nf4_single:
      return "nf4-single";
    case Quantization::int8:
      return "int8";
  }
  SHARDPLAN_CHECK(false, "an unknown quantisation");
  return {};
}

bool has_adapters(const Catalog& catalog) {
  return any_tensor(catalog, [](const Tensor& tensor) { return tensor.name.find(".lora_") != std::string::npos; });
}

bool has_quantised(const Catalog& catalog) {
  return any_tensor(catalog, [](const Tensor& tensor) { return tensor.scales; });
}

bool has_quantizable(const Catalog& catalog) {
  return std::any_of(catalog.runs.begin(), catalog.runs.end(), [&](const UnitRun& run) {
    return std::any_of(run.tensors.begin(), run.tensors.end(),
                       [&](const Tensor& tensor) { return is_quantizable(catalog, run, tensor, false); });
  });
}

void quantize(Catalog& catalog, Quantization quantization, bool heads) {
  for (UnitRun& run : catalog.runs) {
    const bool transposed = stores_transposed(run);
    std::vector<Tensor> tensors;
    for (Tensor& tensor : run.tensors) {
      const bool quantized = is_quantizable(catalog, run, tensor, heads);
      tensors.push_back(std::move(tensor));
      if (!quantized) continue;
      tensors.back().dtype = quantization == Quantization::int8 ? DType::i8 : DType::nf4;
      const Tensor weight = tensors.back();
      push_scales(tensors, weight, quantization, transposed);
    }
    run.tensors = std::move(tensors);
  }
}

}  // namespace shardplan
