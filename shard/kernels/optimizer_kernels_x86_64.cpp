#include <boost/container/static_vector.hpp>

#include "shard/kernels/optimizer_kernels.h"

namespace shardplan {

namespace kernels_x86_64_v2 {
extern const OptimizerKernels kKernels;
}
namespace kernels_x86_64_v3 {
extern const OptimizerKernels kKernels;
}
namespace kernels_x86_64_v4 {
extern const OptimizerKernels kKernels;
}

std::span<const OptimizerKernels> optimizer_kernels() {
  // No allocation: this may be the first thing that a step calls.
  static const auto runnable = [] {
    boost::container::static_vector<OptimizerKernels, 3> list{kernels_x86_64_v2::kKernels};
    if (__builtin_cpu_supports("x86-64-v3")) list.push_back(kernels_x86_64_v3::kKernels);
    if (__builtin_cpu_supports("x86-64-v4")) list.push_back(kernels_x86_64_v4::kKernels);
    return list;
  }();
  return {runnable.data(), runnable.size()};
}

}  // namespace shardplan
