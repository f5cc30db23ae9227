#include "base/error.h"
#include "runtime/cuda/launch.h"
#include "shard/kernels/cuda/launches.h"

namespace shardplan::cuda {
namespace {

template <typename Optimizer>
void launch_update_of(cudaStream_t stream, const UpdateScalars& scalars, const UpdatePointers& a) {
  const Cut cut = cut_of(a.elements, {{a.parameter_dtype, a.parameter},
                                      {DType::f32, reinterpret_cast<const std::byte*>(a.master)},
                                      {DType::bf16, reinterpret_cast<const std::byte*>(a.master_rest)},
                                      {a.gradient_dtype, a.gradient},
                                      {a.first_moment_dtype, a.first_moment},
                                      {a.second_moment_dtype, a.second_moment},
                                      {DType::f32, reinterpret_cast<const std::byte*>(a.ema)}});
  launch_each(stream, "update", cut, UpdateElements<Optimizer>{scalars, a});
}

// One warp: the order of additions in a lane is promised, and leaves nothing for a second one to do.
__global__ void sum_lanes(DType dtype, const std::byte* values, std::uint64_t elements, double* result) {
  double sum = lane_of_squares(dtype, values, elements, threadIdx.x);
  // Lane k adds lane k + half; what lanes from `half` on have is not used any more.
  for (int half = kSumLanes / 2; half > 0; half /= 2) sum += __shfl_down_sync(0xffffffffU, sum, half);
  if (threadIdx.x == 0) *result = sum;
}

}  // namespace

void launch_cast(cudaStream_t stream, const CastElements& cast, std::uint64_t elements) {
  launch_each(stream, "cast", cut_of(elements, {{cast.to_dtype, cast.to}, {cast.from_dtype, cast.from}}), cast);
}

void launch_accumulate(cudaStream_t stream, const AccumulateElements& accumulate, std::uint64_t elements) {
  const Cut cut = cut_of(elements, {{accumulate.sum_dtype, accumulate.sum}, {accumulate.part_dtype, accumulate.part}});
  launch_each(stream, "accumulate", cut, accumulate);
}

void launch_update(cudaStream_t stream, const UpdateScalars& scalars, const UpdatePointers& arrays) {
  switch (scalars.kind) {
    case OptimizerKind::adamw:
      return launch_update_of<formulas::AdamW>(stream, scalars, arrays);
    case OptimizerKind::adam:
      return launch_update_of<formulas::Adam>(stream, scalars, arrays);
    case OptimizerKind::sgd:
      return launch_update_of<formulas::Sgd>(stream, scalars, arrays);
    case OptimizerKind::sgd_momentum:
      return launch_update_of<formulas::SgdMomentum>(stream, scalars, arrays);
    case OptimizerKind::lion:
      return launch_update_of<formulas::Lion>(stream, scalars, arrays);
    default:
      SHARDPLAN_CHECK(false, "an optimizer without a kernel");
    case OptimizerKind::adafactor:
    case OptimizerKind::adam8bit:
    case OptimizerKind::muon:
      break;  // no step plan has them
  }
}

void launch_sum_of_squares(cudaStream_t stream, DType dtype, const std::byte* values, std::uint64_t elements,
                           double* result) {
  sum_lanes<<<1, kSumLanes, 0, stream>>>(dtype, values, elements, result);
  check(cudaGetLastError(), "norm");
}

}  // namespace shardplan::cuda
