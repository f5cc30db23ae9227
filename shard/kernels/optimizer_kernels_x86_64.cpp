#include <boost/container/static_vector.hpp>

#include "shard/kernels/optimizer_kernels.h"

namespace shardplan {

namespace kernels_x86_64_v2 {
extern const OptimizerKernels kOptimizerKernels;
}
namespace kernels_x86_64_v3 {
extern const OptimizerKernels kOptimizerKernels;
}
namespace kernels_x86_64_v4 {
extern const OptimizerKernels kOptimizerKernels;
}

std::span<const OptimizerKernels> optimizer_kernels() {
  // No allocation: this may be the first thing that a step calls.
  static const auto runnable = [] {
    boost::container::static_vector<OptimizerKernels, 3> list{kernels_x86_64_v2::kOptimizerKernels};
    if (__builtin_cpu_supports("x86-64-v3")) list.push_back(kernels_x86_64_v3::kOptimizerKernels);
    if (__builtin_cpu_supports("x86-64-v4")) list.push_back(kernels_x86_64_v4::kOptimizerKernels);
    return list;
  }();
  return {runnable.data(), runnable.size()};
}

}  // namespace shardplan
