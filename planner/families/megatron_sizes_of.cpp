// From another family's modules to Megatron-LM's sizes.
#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "base/text.h"
#include "planner/families/megatron.h"

namespace shardplan {
namespace {

[[noreturn]] void refuse(const Model& model, const std::string& problem) {
  throw ConfigError(model.catalog.name, "", "Megatron-LM builds no such model: " + problem);
}

std::string_view last_part(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? name : name.substr(dot + 1);
}

bool has_bias(const Module& module) {
  return std::any_of(module.tensors.begin(), module.tensors.end(),
                     [](const Tensor& tensor) { return tensor.name == "bias"; });
}

bool below(const Module& module, std::string_view part) {
  return ("." + module.name + ".").find(fmt::format(".{}.", part)) != std::string::npos;
}

bool is_shared(const Module& module) {
  return below(module, "shared_experts") || below(module, "shared_expert") || below(module, "shared_mlp");
}

const Module* find(const ModuleRun& run, auto&& matches) {
  const auto found = std::find_if(run.modules.begin(), run.modules.end(), matches);
  return found == run.modules.end() ? nullptr : &*found;
}

class Finder {
 public:
  explicit Finder(const Model& model) : model_(model) {}

  MegatronSizes find_all() {
    const Architecture& a = model_.architecture;
    if (model_.modules.empty() || a.layers == 0) refuse(model_, "only its tensors are known");
    s_.vocabulary = a.vocabulary;
    s_.layers = a.layers;
    s_.hidden = a.hidden;
    s_.ffn = a.intermediate;
    s_.heads = a.heads;
    s_.query_groups = a.kv_heads > 0 ? a.kv_heads : a.heads;
    s_.kv_channels = a.head_size;
    s_.max_positions = a.max_positions;
    s_.positions = MegatronPositions::none;
    s_.untied = true;
    for (const ModuleRun& run : model_.modules) run.numbered ? read_block(run) : read_rest(run);
    if (s_.experts &&
        std::find(s_.experts->layers.begin(), s_.experts->layers.end(), false) == s_.experts->layers.end()) {
      s_.experts->layers.clear();
    }
    return s_;
  }

 private:
  void read_rest(const ModuleRun& run) {
    for (const Module& module : run.modules) {
      const std::string_view name = last_part(module.name);
      const bool positions = name == "wpe" || name == "embed_positions" || name == "position_embeddings";
      if (module.kind == ModuleKind::embedding && positions) s_.positions = MegatronPositions::learned;
      for (const Tensor& tensor : module.tensors) {
        if (!tensor.tied_to.empty()) s_.untied = false;
      }
    }
  }

  void read_block(const ModuleRun& run) {
    const Module* core = find(run, [](const Module& m) { return m.attention.has_value(); });
    if (core == nullptr) refuse(model_, fmt::format("blocks of {} have no attention", run.name));
    if (core->attention->value_size > 0 && core->attention->value_size != core->attention->head_size) {
      refuse(model_, "its latent attention is not found by its modules");
    }
    if (core->attention->rotary && s_.positions != MegatronPositions::learned) s_.positions = MegatronPositions::rotary;
    read_norms(run);
    read_mlp(run);
    // Biases: of the projection to the heads, and of all others.
    const Module* output = find(run, [](const Module& m) {
      const std::string_view name = last_part(m.name);
      return (name == "o_proj" || name == "c_proj" || name == "out_proj") && !below(m, "mlp");
    });
    const Module* query = find(run, [](const Module& m) {
      const std::string_view name = last_part(m.name);
      return name == "q_proj" || name == "c_attn" || name == "qkv_proj" || name == "query_key_value";
    });
    s_.linear_bias = output != nullptr && has_bias(*output);
    s_.qkv_bias = !s_.linear_bias && query != nullptr && has_bias(*query);
  }

  void read_norms(const ModuleRun& run) {
    s_.rms_norm = find(run, [](const Module& m) { return m.kind == ModuleKind::layer_norm; }) == nullptr;
    s_.qk_norm = find(run, [](const Module& m) {
                   const std::string_view name = last_part(m.name);
                   return (name == "q_norm" || name == "q_layernorm") && !m.tensors.empty();
                 }) != nullptr;
  }

  void read_mlp(const ModuleRun& run) {
    const Module* activation = find(run, [](const Module& m) { return m.kind == ModuleKind::activation; });
    s_.gated = find(run, [](const Module& m) { return m.kind == ModuleKind::multiply; }) != nullptr;
    if (activation != nullptr) {
      const bool silu = activation->function == "silu" || activation->function == "swish";
      if (s_.gated && !silu) refuse(model_, fmt::format("its gated MLP uses {}", activation->function));
      s_.activation = silu ? "silu" : activation->function == "relu2" ? "relu2" : "gelu";
      if (!s_.gated && silu) refuse(model_, "silu without a gate");
    }
    const Module* expert = find(run, [](const Module& m) { return m.routing && m.kind == ModuleKind::activation; });
    std::vector<bool> layers = s_.experts ? s_.experts->layers : std::vector<bool>(seen_, false);
    layers.insert(layers.end(), run.count, expert != nullptr);
    seen_ += run.count;
    if (expert == nullptr) {
      if (s_.experts) s_.experts->layers = std::move(layers);
      return;
    }
    s_.experts = MegatronSizes::Experts{};
    MegatronSizes::Experts& e = *s_.experts;
    e.experts = expert->routing->experts;
    e.chosen = expert->routing->chosen;
    e.ffn = expert->routing->fused ? expert->output / e.experts : expert->output;
    e.grouped = true;
    const Module* shared = find(run, [](const Module& m) { return m.kind == ModuleKind::activation && is_shared(m); });
    e.shared_ffn = shared == nullptr ? 0 : shared->output;
    e.shared_gate = find(run, [](const Module& m) { return last_part(m.name) == "shared_expert_gate"; }) != nullptr;
    e.layers = std::move(layers);
  }

  const Model& model_;
  MegatronSizes s_;
  std::uint64_t seen_ = 0;
};

}  // namespace

MegatronSizes megatron_sizes_of(const Model& model) {
  MegatronSizes sizes = Finder(model).find_all();
  const std::uint64_t wanted = parameter_elements(model.catalog);
  const std::uint64_t built = parameter_elements(megatron_model(model.catalog.name, sizes).catalog);
  if (built != wanted) {
    refuse(model,
           fmt::format("with these sizes it has {} parameters, not {}", with_commas(built), with_commas(wanted)));
  }
  return sizes;
}

}  // namespace shardplan
