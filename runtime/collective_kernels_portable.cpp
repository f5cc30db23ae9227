#include "runtime/collective_kernels.h"

namespace shardplan {

namespace kernels_portable {
extern const CollectiveKernels kCollectiveKernels;
}

std::span<const CollectiveKernels> collective_kernels() {
  return {&kernels_portable::kCollectiveKernels, 1};
}

}  // namespace shardplan
