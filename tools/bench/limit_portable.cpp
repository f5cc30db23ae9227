#include "tools/bench/limit.h"

namespace shardplan::bench {

namespace kernels_portable {
extern const LimitKernels kKernels;
}

const LimitKernels& limit_kernels() {
  return kernels_portable::kKernels;
}

}  // namespace shardplan::bench
