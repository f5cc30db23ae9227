// What the CUDA runtime answers, as exceptions; and which device a thread is on. Included inside of the CUDA module only.
#pragma once

#include <cuda_runtime_api.h>

namespace shardplan::cuda {

// Throws Error: "CUDA: WHAT: an illegal memory access was encountered (cudaErrorIllegalAddress)".
void check(cudaError_t result, const char* what);

// The calling thread is on this device as long as the object lives, then where it was.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace shardplan::cuda
