#include "runtime/collective_kernels.h"

namespace shardplan {

namespace kernels_portable {
extern const CollectiveKernels kernels;
}

std::span<const CollectiveKernels> collective_kernels() {
  return {&kernels_portable::kernels, 1};
}

}  // namespace shardplan
