#include "planner/formats/buffers.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace shardplan {

bool is_saved_buffer(std::string_view name, const Shape& shape) {
  static constexpr std::array<std::string_view, 12> kEndings{
      "rotary_emb.inv_freq", "position_ids",     "attn.masked_bias", "attention.masked_bias", "final_logits_bias",
      "pos_embed.pos_embed", "running_mean",     "running_var",      "num_batches_tracked",   "relative_position_index",
      "permutation.order",   "permutation.sign",
  };
  const auto ends = [&](std::string_view ending) { return name.ends_with(ending); };
  const bool mask = ends("attn.bias") || ends("attn.attention.bias");
  return std::any_of(kEndings.begin(), kEndings.end(), ends) ||
         (mask && shape.size() == 4 && shape[0] == 1 && shape[1] == 1);
}

void note_buffers(Catalog& catalog) {
  if (catalog.buffers.empty()) return;
  catalog.notes.push_back(fmt::format("buffers that are no parameters are not in these figures: {}, '{}' first",
                                      catalog.buffers.size(), catalog.buffers.front().name));
}

}  // namespace shardplan
