#include <boost/container/static_vector.hpp>

#include "runtime/collective_kernels.h"

namespace shardplan {

namespace kernels_x86_64_v2 {
extern const CollectiveKernels kCollectiveKernels;
}
namespace kernels_x86_64_v3 {
extern const CollectiveKernels kCollectiveKernels;
}
namespace kernels_x86_64_v4 {
extern const CollectiveKernels kCollectiveKernels;
}

std::span<const CollectiveKernels> collective_kernels() {
  // No allocation: this may be the first thing that a step calls.
  static const auto runnable = [] {
    boost::container::static_vector<CollectiveKernels, 3> list{kernels_x86_64_v2::kCollectiveKernels};
    if (__builtin_cpu_supports("x86-64-v3")) list.push_back(kernels_x86_64_v3::kCollectiveKernels);
    if (__builtin_cpu_supports("x86-64-v4")) list.push_back(kernels_x86_64_v4::kCollectiveKernels);
    return list;
  }();
  return {runnable.data(), runnable.size()};
}

}  // namespace shardplan
