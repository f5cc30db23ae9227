// Units from the names of tensors, where nothing else says what belongs together.
//
//   <prefix>.<number>.<rest>   is of block <prefix>.<number>, for the outermost number whose prefix numbers modules:
//                              somewhere in the model, <rest> has a dot ("self_attn.q_proj.weight"). The members of a
//                              Sequential of plain layers ("classifier.0.weight") are no blocks.
//   a part of the name says    embed, wte, wpe, shared, cls_token: the embedding unit (but for embed_out, which is
//   embedding                  GPT-NeoX's head)
//   everything else            the head unit
//
// Order: embedding; blocks, those of encoders and of vision and audio towers first, those of decoders last, in numeric
// order; head. Inside a unit tensors stay in the order given.
#pragma once

#include <string>
#include <vector>

#include "planner/catalog.h"

namespace shardplan {

// `tensors` have their whole names; the family of the catalog is "tensors". Throws ConfigError, with `source` as the
// file, for a name that comes twice or is empty, and for a catalog too large to be counted.
Catalog catalog_from_tensors(const std::string& source, std::vector<Tensor> tensors);

// Throws ConfigError for a name that comes twice or is empty.
void require_distinct_names(const std::string& source, const std::vector<Tensor>& tensors);

}  // namespace shardplan
