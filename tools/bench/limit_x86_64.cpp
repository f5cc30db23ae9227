#include "tools/bench/limit.h"

namespace shardplan::bench {

namespace kernels_x86_64_v2 {
extern const LimitKernels kLimitKernels;
}
namespace kernels_x86_64_v3 {
extern const LimitKernels kLimitKernels;
}
namespace kernels_x86_64_v4 {
extern const LimitKernels kLimitKernels;
}

const LimitKernels& limit_kernels() {
  if (__builtin_cpu_supports("x86-64-v4")) return kernels_x86_64_v4::kLimitKernels;
  if (__builtin_cpu_supports("x86-64-v3")) return kernels_x86_64_v3::kLimitKernels;
  return kernels_x86_64_v2::kLimitKernels;
}

}  // namespace shardplan::bench
