#include "tools/bench/limit.h"

namespace shardplan::bench {

namespace kernels_x86_64_v2 {
extern const LimitKernels kKernels;
}
namespace kernels_x86_64_v3 {
extern const LimitKernels kKernels;
}
namespace kernels_x86_64_v4 {
extern const LimitKernels kKernels;
}

const LimitKernels& limit_kernels() {
  if (__builtin_cpu_supports("x86-64-v4")) return kernels_x86_64_v4::kKernels;
  if (__builtin_cpu_supports("x86-64-v3")) return kernels_x86_64_v3::kKernels;
  return kernels_x86_64_v2::kKernels;
}

}  // namespace shardplan::bench
