#include "tools/bench/limit.h"

namespace shardplan::bench {

namespace kernels_portable {
extern const LimitKernels limit_kernels;
}

const LimitKernels& limit_kernels() {
  return kernels_portable::limit_kernels;
}

}  // namespace shardplan::bench
