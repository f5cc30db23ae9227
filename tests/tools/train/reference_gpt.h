// The example's GPT written down once more: forward only, in double, one loop for each sum of the formulas.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tools/train/gpt_tensors.h"

namespace shardplan::test {

// Tensors in the catalog's order. A tied head's is looked for in the first.
using ReferenceParameters = std::vector<std::vector<double>>;

// Mean cross-entropy of the windows' bytes, in nats.
double reference_loss(const GptConfig& config, const ReferenceParameters& parameters,
                      std::span<const std::uint8_t> windows);

}  // namespace shardplan::test
