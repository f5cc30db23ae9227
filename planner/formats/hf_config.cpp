#include "planner/formats/hf_config.h"

#include <optional>

#include "planner/families/family.h"
#include "planner/families/model.h"
#include "planner/families/model_config.h"
#include "planner/formats/buffers.h"
#include "planner/formats/countable.h"

namespace shardplan {
namespace {

// dtype since transformers 5, torch_dtype before; on the model or, for models made of models, on its language model.
std::optional<DType> stored_dtype(JsonView root) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    const JsonView value = root[key];
    if (!value.exists() || value.is_null() || (value.is_string() && value.as_string() == "auto")) continue;
    std::string_view text = value.as_string();
    if (text.starts_with("torch.")) text.remove_prefix(6);
    if (const auto dtype = parse_dtype(text)) return dtype;
    value.fail_expected("the name of a dtype, such as \"bfloat16\"");
  }
  const JsonView text_config = root["text_config"];
  return text_config.is_object() ? stored_dtype(text_config) : std::nullopt;
}

}  // namespace

Model model_from_hf_config(JsonView root) {
  const Family& family = require_family(root);
  ModelConfig config(root, family);
  Model model;
  ModelBuilder builder(config, model);
  family.build(config, builder);
  finish_model(model, root.source(), std::string(family.model_type));
  require_countable(model.catalog, root.source());
  model.catalog.stored_dtype = stored_dtype(root);
  model.catalog.active_parameters = active_parameters(model.modules);
  model.catalog.notes = config.notes();
  note_buffers(model.catalog);
  if (root["quantization_config"].is_object()) {
    model.catalog.notes.emplace_back("quantization_config is not used: every tensor is counted as a trainable one");
  }
  return model;
}

Model model_from_hf_config(std::string_view text, const std::string& source) {
  const JsonDocument document(text, source);
  return model_from_hf_config(document.root());
}

}  // namespace shardplan
