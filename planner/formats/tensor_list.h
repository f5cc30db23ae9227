// A list of tensors: the way to describe any model at all.
//
//   { "schema": "shardplan.tensors/1",
//     "name": "my-model",                             optional
//     "tensors": [
//       { "name": "embed.weight", "shape": [32000, 512] },
//       { "name": "blocks.0.proj.weight", "shape": [512, 512],
//         "dtype": "u8",                              optional: fixed by the model; else the precision policy decides
//         "trainable": false,                         optional: true, but false for a dtype that has no gradients
//         "unit": "blocks.0" },                       optional, but for all tensors or for none
//       { "name": "head.weight", "shape": [32000, 512],
//         "tied_to": "embed.weight" } ] }             optional: an earlier tensor of the same shape whose elements these are
//
// With "unit", consecutive tensors of one unit form it, and units are used in the order of the list; a unit
// "<prefix>.<number>" whose tensors are all named below it is one of a run of blocks. Without, units come from the names
// (planner/formats/tensor_units.h). Any other key is an error.
#pragma once

#include <string>
#include <string_view>

#include "planner/families/model.h"
#include "planner/formats/json.h"

namespace shardplan {

inline constexpr std::string_view kTensorListSchema = "shardplan.tensors/1";

// `source` names the text in errors, and the catalog where the list has no name. Throws ConfigError.
Model model_from_tensor_list(std::string_view text, const std::string& source);
Model model_from_tensor_list(JsonView root);

}  // namespace shardplan
