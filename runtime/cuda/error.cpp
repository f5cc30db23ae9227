#include "runtime/cuda/error.h"

#include <fmt/format.h>

#include "base/error.h"

namespace shardplan::cuda {

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) [[likely]]
    return;
  throw Error(fmt::format("CUDA: {}: {} ({})", what, cudaGetErrorString(result), cudaGetErrorName(result)));
}

OnDevice::OnDevice(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  changed_ = true;
}

OnDevice::~OnDevice() {
  if (changed_) cudaSetDevice(before_);  // it was on it a moment ago; a device that has failed says so at the next call
}

}  // namespace shardplan::cuda
