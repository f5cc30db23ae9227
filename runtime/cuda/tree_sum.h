// The sum of a reduction tree (communicator.h, contract 1), element by element, from contributions that were staged.
#pragma once

#include "runtime/cuda/elements.h"

namespace shardplan::cuda {

// Contributions of `ranks` ranks to one piece: this rank's own where it lies, the others' in rank order from `staged` on,
// `stride` bytes apart.
struct StagedSum {
  DType wire = DType::f32;
  const std::byte* own = nullptr;
  const std::byte* staged = nullptr;
  std::uint64_t stride = 0;
  int own_rank = 0;
  int ranks = 1;
  int group_size = 1;  // of the tree, >= 1
  float scale = 1;
  bool add = false;  // to the output, else store
  DType output_dtype = DType::f32;
  std::byte* output = nullptr;  // may be `own`, if the widths are equal

  constexpr const std::byte* input(int rank) const {
    if (rank == own_rank) return own;
    return staged + static_cast<std::uint64_t>(rank < own_rank ? rank : rank - 1) * stride;
  }

  template <int n>
  constexpr void at(std::uint64_t first) const {
    Values<n> sum;
    Values<n> partial;
    for (int begin = 0; begin < ranks; begin += group_size) {
      const int end = ranks - begin < group_size ? ranks : begin + group_size;
      for (int rank = begin; rank < end; ++rank) {
        const Values<n> next = widened(wire, read<n>(wire, input(rank), first));
        for (int i = 0; i < n; ++i) {
          partial.value[i] = rank == begin ? next.value[i] : partial.value[i] + next.value[i];
        }
      }
      for (int i = 0; i < n; ++i) {
        sum.value[i] = begin == 0 ? partial.value[i] : sum.value[i] + partial.value[i];
      }
    }
    Values<n> result;
    const Values<n> before = add ? widened(output_dtype, read<n>(output_dtype, output, first)) : Values<n>{};
    for (int i = 0; i < n; ++i) {
      const float scaled = sum.value[i] * scale;
      result.value[i] = add ? before.value[i] + scaled : scaled;
    }
    write<n>(output_dtype, output, first, narrowed(output_dtype, result));
  }
};

}  // namespace shardplan::cuda
