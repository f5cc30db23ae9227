#include "tools/bench/limit.h"

namespace shardplan::bench {

namespace kernels_portable {
extern const LimitKernels kLimitKernels;
}

const LimitKernels& limit_kernels() {
  return kernels_portable::kLimitKernels;
}

}  // namespace shardplan::bench
