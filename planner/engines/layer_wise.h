// Megatron-LM's layer-wise distributed optimizer: how whole matrices are shared out among data ranks for Muon
// (core/optimizer/layer_wise_optimizer.py, LayerWiseDistributedOptimizer._compute_per_buffer_param_layout).
//
// Parameters go into buckets from the last to the first. A bucket is full at bucket_size elements, or at 0.9 x N x its
// largest matrix where that is more, but takes what still fits into its padding. In a bucket matrices go, the one whose
// orthogonalisation costs most first, to the rank that has least to do so far and room for it (1.3 x the mean); every
// rank's part is padded to that of the fullest. No matrix is cut, so ranks differ in how much they update.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace shardplan {

struct WholeMatrix {
  std::uint64_t rows = 1;
  std::uint64_t columns = 1;
};

struct LayerWiseLayout {
  std::uint64_t elements = 0;         // of the matrices
  std::uint64_t padded_elements = 0;  // of the buffer
  std::uint64_t buckets = 0;
  std::uint64_t most_elements = 0;  // what the fullest rank updates
};

// Matrices in the order of the model. `bucket_size`: empty is one bucket. `bus_padding`: of 65536 elements. Throws
// ArithmeticOverflow.
LayerWiseLayout layer_wise_layout(const std::vector<WholeMatrix>& matrices, std::uint64_t ranks,
                                  std::optional<std::uint64_t> bucket_size, bool bus_padding);

}  // namespace shardplan
