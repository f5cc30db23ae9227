#include "shard/kernels/optimizer_kernels.h"

namespace shardplan {

namespace kernels_portable {
extern const OptimizerKernels kKernels;
}

std::span<const OptimizerKernels> optimizer_kernels() {
  return {&kernels_portable::kKernels, 1};
}

}  // namespace shardplan
