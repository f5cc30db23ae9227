#include "runtime/collective_kernels.h"

namespace shardplan {

namespace kernels_portable {
extern const CollectiveKernels kKernels;
}

std::span<const CollectiveKernels> collective_kernels() {
  return {&kernels_portable::kKernels, 1};
}

}  // namespace shardplan
