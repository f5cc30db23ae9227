// How many tokens pass each module of a model: text in one tower, patches of images in another, both in a third.
#pragma once

#include <cstdint>
#include <vector>

namespace shardplan {

struct ModuleRows {
  std::uint64_t rows = 0;  // of one sample, that the module computes on; 0: not known, as many as the sample's text has
  // Of attention: tokens that each of these sees, and whether the kernel leaves out those behind it. 0: not known.
  std::uint64_t keys = 0;
  bool causal = false;
  bool operator==(const ModuleRows&) const = default;
};

// Of each run of a model's modules, its modules in order; none for a run that no forward enters (an autoencoder's decoder in
// training). Empty: nothing is known.
using RowsOfModules = std::vector<std::vector<ModuleRows>>;

}  // namespace shardplan
