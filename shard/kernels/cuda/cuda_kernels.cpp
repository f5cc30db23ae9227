#include "shard/kernels/cuda/cuda_kernels.h"

#include "base/error.h"
#include "runtime/cuda/cuda_device.h"
#include "runtime/cuda/error.h"
#include "shard/kernels/cuda/launches.h"

namespace shardplan::cuda {
namespace {

void check_pair(const char* kernel, const ConstElements& a, const ConstElements& b) {
  check_kernel_dtype(a.dtype);
  check_kernel_dtype(b.dtype);
  SHARDPLAN_CHECK(a.elements == b.elements, std::string(kernel) + ": arrays of different lengths");
}

class CudaKernels final : public Kernels {
 public:
  bool hold_values() const override { return true; }

  void cast(Stream& stream, const Elements& to, const ConstElements& from) const override {
    check_pair("cast", to, from);
    stream.launching("cast", touched_by_cast(to, from));
    CudaStream& cuda = cuda_stream(stream);
    const OnDevice on(cuda.device());
    launch_cast(cuda.handle(), {to.dtype, to.data, from.dtype, from.data}, to.elements);
  }

  void accumulate(Stream& stream, const Elements& sum, const ConstElements& part) const override {
    check_pair("accumulate", sum, part);
    stream.launching("accumulate", touched_by_accumulate(sum, part));
    CudaStream& cuda = cuda_stream(stream);
    const OnDevice on(cuda.device());
    launch_accumulate(cuda.handle(), {sum.dtype, sum.data, part.dtype, part.data}, sum.elements);
  }

  void update(Stream& stream, const UpdateOptions& options, const UpdateArrays& arrays) const override {
    const UpdateCall call = checked_update(options, arrays);
    stream.launching("update", touched_by_update(arrays));
    CudaStream& cuda = cuda_stream(stream);
    const OnDevice on(cuda.device());
    launch_update(cuda.handle(), call.scalars, call.arrays);
  }

  double sum_of_squares(Stream& stream, const ConstElements& values) const override {
    check_kernel_dtype(values.dtype);
    stream.launching("norm", touched_by_norm(values));
    CudaStream& cuda = cuda_stream(stream);
    {
      const OnDevice on(cuda.device());
      launch_sum_of_squares(cuda.handle(), values.dtype, values.data, values.elements, cuda.result());
    }
    stream.synchronize();
    return *cuda.result();
  }
};

}  // namespace

const Kernels& cuda_kernels() {
  static const CudaKernels kernels;
  return kernels;
}

}  // namespace shardplan::cuda
