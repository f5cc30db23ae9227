#include "shard/kernels/optimizer_kernels.h"

namespace shardplan {

namespace kernels_portable {
extern const OptimizerKernels optimizer_kernels;
}

std::span<const OptimizerKernels> optimizer_kernels() {
  return {&kernels_portable::optimizer_kernels, 1};
}

}  // namespace shardplan
