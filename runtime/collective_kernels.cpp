// Compiled once per level, with SHARDPLAN_KERNEL_LEVEL its namespace. Only functions with internal linkage
// may be used here: an inline function with external linkage could be emitted for AVX-512 and be chosen by
// the linker for everyone. base/half.h is safe, as its functions are always inlined at the -O3 that this file
// is compiled with; a test looks.
#include "runtime/collective_kernels.h"

#include "base/half.h"
#include "runtime/streaming_copy.h"

namespace shardplan::SHARDPLAN_KERNEL_LEVEL {
namespace {

constexpr std::size_t kBlock = 2048;  // elements; two fp32 blocks stay in the first-level cache

struct F32 {
  using Stored = float;
  static float load(float value) { return value; }
  static float store(float value) { return value; }
};
struct BF16 {
  using Stored = std::uint16_t;
  static float load(std::uint16_t value) { return bf16_to_fp32(value); }
  static std::uint16_t store(float value) { return fp32_to_bf16(value); }
};
struct F16 {
  using Stored = std::uint16_t;
  static float load(std::uint16_t value) { return fp16_to_fp32(value); }
  static std::uint16_t store(float value) { return fp32_to_fp16(value); }
};

// sum[i] = (kFresh ? first input : sum[i] + first input) + the others in order; kInputs of them, `at` bytes
// into each.
template <typename Wire, std::size_t kInputs, bool kFresh>
void sum_inputs(const std::byte* const* inputs, std::size_t at, std::size_t elements, float* __restrict sum) {
  const typename Wire::Stored* from[kInputs];
  for (std::size_t k = 0; k < kInputs; ++k) from[k] = reinterpret_cast<const typename Wire::Stored*>(inputs[k] + at);
  for (std::size_t i = 0; i < elements; ++i) {
    float value = kFresh ? Wire::load(from[0][i]) : sum[i] + Wire::load(from[0][i]);
    for (std::size_t k = 1; k < kInputs; ++k) value += Wire::load(from[k][i]);
    sum[i] = value;
  }
}

template <typename Wire, bool kFresh>
void sum_some(const std::byte* const* inputs, std::size_t count, std::size_t at, std::size_t elements, float* sum) {
  switch (count) {
    case 1:
      return sum_inputs<Wire, 1, kFresh>(inputs, at, elements, sum);
    case 2:
      return sum_inputs<Wire, 2, kFresh>(inputs, at, elements, sum);
    case 3:
      return sum_inputs<Wire, 3, kFresh>(inputs, at, elements, sum);
    default:
      return sum_inputs<Wire, 4, kFresh>(inputs, at, elements, sum);
  }
}

// The partial sum of one group of the tree.
template <typename Wire>
void sum_group(const std::byte* const* inputs, std::size_t ranks, std::size_t at, std::size_t elements, float* sum) {
  std::size_t done = ranks < 4 ? ranks : 4;
  sum_some<Wire, true>(inputs, done, at, elements, sum);
  while (done < ranks) {
    const std::size_t count = ranks - done < 4 ? ranks - done : 4;
    sum_some<Wire, false>(inputs + done, count, at, elements, sum);
    done += count;
  }
}

template <typename Wire>
void sum_tree(const ReduceRange& range, std::size_t at, std::size_t elements, float* __restrict sum,
              float* __restrict partial) {
  for (std::size_t first = 0; first < range.ranks; first += range.group_size) {
    const std::size_t left = range.ranks - first;
    const std::size_t ranks = left < range.group_size ? left : range.group_size;
    sum_group<Wire>(range.inputs + first, ranks, at, elements, first == 0 ? sum : partial);
    if (first == 0) continue;
    for (std::size_t i = 0; i < elements; ++i) sum[i] += partial[i];
  }
}

// NOLINTBEGIN(clang-analyzer-core.UndefinedBinaryOperatorResult): there is a rank, so sum_tree has filled `sum`
template <typename Output>
void finish(const ReduceRange& range, std::size_t first, std::size_t elements, const float* __restrict sum) {
  using Stored = typename Output::Stored;
  auto* __restrict output = reinterpret_cast<Stored*>(range.output) + first;
  const float scale = range.scale;
  if (range.add) {
    for (std::size_t i = 0; i < elements; ++i) output[i] = Output::store(Output::load(output[i]) + sum[i] * scale);
  } else if (range.streams) {
    alignas(64) Stored block[kBlock];
    for (std::size_t i = 0; i < elements; ++i) block[i] = Output::store(sum[i] * scale);
    streaming_copy(reinterpret_cast<std::byte*>(output), reinterpret_cast<const std::byte*>(block),
                   elements * sizeof(Stored));
  } else {
    for (std::size_t i = 0; i < elements; ++i) output[i] = Output::store(sum[i] * scale);
  }
}
// NOLINTEND(clang-analyzer-core.UndefinedBinaryOperatorResult)

template <typename Wire>
void reduce_wire(const ReduceRange& range) {
  alignas(64) float sum[kBlock];
  alignas(64) float partial[kBlock];
  for (std::size_t first = 0; first < range.elements; first += kBlock) {
    const std::size_t left = range.elements - first;
    const std::size_t elements = left < kBlock ? left : kBlock;
    sum_tree<Wire>(range, first * sizeof(typename Wire::Stored), elements, sum, partial);
    switch (range.output_dtype) {
      case KernelDType::f32:
        finish<F32>(range, first, elements, sum);
        break;
      case KernelDType::bf16:
        finish<BF16>(range, first, elements, sum);
        break;
      case KernelDType::f16:
        finish<F16>(range, first, elements, sum);
        break;
    }
  }
}

void reduce(const ReduceRange& range) {
  switch (range.wire) {
    case KernelDType::f32:
      return reduce_wire<F32>(range);
    case KernelDType::bf16:
      return reduce_wire<BF16>(range);
    case KernelDType::f16:
      return reduce_wire<F16>(range);
  }
}

}  // namespace

extern const CollectiveKernels kCollectiveKernels;
const CollectiveKernels kCollectiveKernels{SHARDPLAN_KERNEL_NAME, reduce};

}  // namespace shardplan::SHARDPLAN_KERNEL_LEVEL
