// Hugging Face's config.json.
//
// `model_type` chooses the family (planner/families), `architectures` the head. Keys that a file leaves out have the
// defaults of the family's class in transformers, and the catalog's notes say which were taken. The file's dtype is the
// catalog's stored_dtype; what training holds, the precision policy decides.
#pragma once

#include <string>
#include <string_view>

#include "planner/families/model.h"
#include "planner/formats/json.h"

namespace shardplan {

// `source` names the text in errors and is the catalog's name. Throws ConfigError: for text that is no JSON, a
// model_type that is not known, values that no model can have, and models too large to be counted in 64 bits.
Model model_from_hf_config(std::string_view text, const std::string& source);
Model model_from_hf_config(JsonView root);

}  // namespace shardplan
