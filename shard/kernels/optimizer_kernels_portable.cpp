#include "shard/kernels/optimizer_kernels.h"

namespace shardplan {

namespace kernels_portable {
extern const OptimizerKernels kOptimizerKernels;
}

std::span<const OptimizerKernels> optimizer_kernels() {
  return {&kernels_portable::kOptimizerKernels, 1};
}

}  // namespace shardplan
