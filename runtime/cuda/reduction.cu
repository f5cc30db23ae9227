#include "runtime/cuda/launch.h"
#include "runtime/cuda/reduction.h"

namespace shardplan::cuda {

void launch_sum(cudaStream_t stream, const StagedSum& sum, std::uint64_t elements) {
  // All others' lie on a vector's boundary if the first two do.
  const std::byte* first = sum.ranks > 1 ? sum.staged : nullptr;
  const std::byte* second = sum.ranks > 2 ? sum.staged + sum.stride : nullptr;
  const Cut cut =
      cut_of(elements, {{sum.wire, sum.own}, {sum.wire, first}, {sum.wire, second}, {sum.output_dtype, sum.output}});
  launch_each(stream, "reduce", cut, sum);
}

}  // namespace shardplan::cuda
