// What the example's GPT is made of: its size, its tensors unit by unit, and their first values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "planner/catalog.h"

namespace shardplan {

struct GptConfig {
  std::size_t layers = 2;
  std::size_t width = 128;
  std::size_t heads = 4;     // divides the width
  std::size_t context = 64;  // bytes that the model sees at once
  bool tied = true;          // the head uses the token embedding as its matrix; otherwise it has its own
  std::uint64_t seed = 0;    // of the first values
};

constexpr std::size_t kVocabulary = 256;  // the bytes

// The places of a unit's tensors, in the catalog and so in its views. Matrices are PyTorch's: a row per output.
namespace embedding {
enum Place : std::size_t { tokens, positions, count };
}
namespace block {
enum Place : std::size_t {
  norm_1_weight,
  norm_1_bias,
  qkv_weight,
  qkv_bias,
  out_weight,
  out_bias,
  norm_2_weight,
  norm_2_bias,
  up_weight,
  up_bias,
  down_weight,
  down_bias,
  count,
};
}
namespace head {
enum Place : std::size_t { norm_weight, norm_bias, logits_weight, count };
}

// Units "embedding", "blocks.0" ..., "head". Throws ConfigError for a size of 0 or heads that do not divide the width.
Catalog gpt_catalog(const GptConfig& config);

// The first values of elements first, first + 1, ... of a tensor, which is named by its place in the catalog's order. A
// function of (seed, tensor, element) alone: whoever asks, in whatever ranges, gets the same bits. As in GPT-2: norms 1
// and 0, biases 0, matrices normal with deviation 0.02, divided by sqrt(2 layers) where they end a residual branch.
void fill_initial(const GptConfig& config, std::uint64_t tensor, std::uint64_t first, std::span<float> values);

}  // namespace shardplan
