#include "tools/bench/limit.h"

namespace shardplan::bench {

namespace kernels_x86_64_v2 {
extern const LimitKernels limit_kernels;
}
namespace kernels_x86_64_v3 {
extern const LimitKernels limit_kernels;
}
namespace kernels_x86_64_v4 {
extern const LimitKernels limit_kernels;
}

const LimitKernels& limit_kernels() {
  if (__builtin_cpu_supports("x86-64-v4")) return kernels_x86_64_v4::limit_kernels;
  if (__builtin_cpu_supports("x86-64-v3")) return kernels_x86_64_v3::limit_kernels;
  return kernels_x86_64_v2::limit_kernels;
}

}  // namespace shardplan::bench
