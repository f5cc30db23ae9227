// Compiled once per level, with SHARDPLAN_KERNEL_LEVEL its namespace. Only functions with internal linkage may be used
// here: an inline function with external linkage could be emitted for AVX-512 and be chosen by the linker for everyone.
// base/half.h, split_master.h and optimizer_formulas.h are safe: their functions are always inlined at the -O3 that this
// file is compiled with; a test looks.
//
// A range is updated block by block. fp32 arrays are updated where they are; the others pass through fp32 scratch that
// stays in the first-level cache. So an optimizer's formula is compiled once, and any combination of dtypes is one pass
// over memory.
#include "shard/kernels/optimizer_kernels.h"

#include "base/half.h"
#include "shard/kernels/optimizer_formulas.h"
#include "shard/kernels/split_master.h"

namespace shardplan::SHARDPLAN_KERNEL_LEVEL {
namespace {

constexpr std::size_t kBlock = 512;  // elements
constexpr std::size_t kLanes = 32;   // of sum_of_squares

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

// function(F32{}), function(BF16{}) or function(F16{}).
template <typename Function>
auto with_storage(DType dtype, Function function) {
  if (dtype == DType::bf16) return function(BF16{});
  if (dtype == DType::f16) return function(F16{});
  return function(F32{});
}

// ---- One block, all of it fp32 ----

template <typename Optimizer>
void update_block(const UpdateScalars& scalars, float* __restrict p, const float* __restrict g, float* __restrict m,
                  float* __restrict v, std::size_t elements) {
  const UpdateScalars s = scalars;
  for (std::size_t i = 0; i < elements; ++i) {
    float none = 0;
    // NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): a moment that the optimizer has is there
    Optimizer::update(s, p[i], g[i] * s.gradient_factor, Optimizer::kMoments > 0 ? m[i] : none,
                      Optimizer::kMoments > 1 ? v[i] : none);
  }
}

void update_block(const UpdateScalars& s, float* p, const float* g, float* m, float* v, std::size_t elements) {
  switch (s.kind) {
    case OptimizerKind::adamw:
      return update_block<formulas::AdamW>(s, p, g, m, v, elements);
    case OptimizerKind::adam:
      return update_block<formulas::Adam>(s, p, g, m, v, elements);
    case OptimizerKind::sgd:
      return update_block<formulas::Sgd>(s, p, g, m, v, elements);
    case OptimizerKind::sgd_momentum:
      return update_block<formulas::SgdMomentum>(s, p, g, m, v, elements);
    case OptimizerKind::lion:
      return update_block<formulas::Lion>(s, p, g, m, v, elements);
    case OptimizerKind::adafactor:
    case OptimizerKind::adam8bit:
    case OptimizerKind::muon:
      break;  // no step plan has them
  }
}

void average_block(float* __restrict ema, const float* __restrict p, float fresh, std::size_t elements) {
  for (std::size_t i = 0; i < elements; ++i) ema[i] = formulas::lerp(ema[i], p[i], fresh);
}

// ---- Between dtypes ----

template <typename To, typename From>
void cast(typename To::Stored* __restrict to, const typename From::Stored* __restrict from, std::size_t elements) {
  for (std::size_t i = 0; i < elements; ++i) to[i] = To::store(From::load(from[i]));
}

void cast(DType to_dtype, std::byte* to, DType from_dtype, const std::byte* from, std::size_t elements) {
  with_storage(to_dtype, [&](auto to_storage) {
    with_storage(from_dtype, [&](auto from_storage) {
      using To = decltype(to_storage);
      using From = decltype(from_storage);
      cast<To, From>(reinterpret_cast<typename To::Stored*>(to), reinterpret_cast<const typename From::Stored*>(from),
                     elements);
    });
  });
}

void join_block(float* __restrict master, const std::uint16_t* __restrict parameter,
                const std::uint16_t* __restrict rest, std::size_t elements) {
  for (std::size_t i = 0; i < elements; ++i) master[i] = join_master(parameter[i], rest[i]);
}
void split_block(const float* __restrict master, std::uint16_t* __restrict parameter, std::uint16_t* __restrict rest,
                 std::size_t elements) {
  for (std::size_t i = 0; i < elements; ++i) {
    const SplitMaster halves = split_master(master[i]);
    parameter[i] = halves.parameter;
    rest[i] = halves.rest;
  }
}

// ---- Ranges ----

std::size_t width(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

// A block of an array as fp32: the array's own elements, or scratch.
class Block {
 public:
  float* load(DType dtype, const std::byte* array, std::size_t first, std::size_t elements) {
    if (array == nullptr) return nullptr;
    const std::byte* from = array + first * width(dtype);
    if (dtype == DType::f32) return reinterpret_cast<float*>(const_cast<std::byte*>(from));
    cast(DType::f32, reinterpret_cast<std::byte*>(scratch_), dtype, from, elements);
    return scratch_;
  }
  void store(DType dtype, std::byte* array, std::size_t first, std::size_t elements) const {
    if (array == nullptr || dtype == DType::f32) return;
    cast(dtype, array + first * width(dtype), DType::f32, reinterpret_cast<const std::byte*>(scratch_), elements);
  }
  float* scratch() { return scratch_; }

 private:
  alignas(64) float scratch_[kBlock];
};

void update(const UpdateScalars& scalars, const UpdatePointers& a) {
  Block parameter;
  Block gradient;
  Block first_moment;
  Block second_moment;
  auto* const upper = reinterpret_cast<std::uint16_t*>(a.parameter);
  for (std::size_t first = 0; first < a.elements; first += kBlock) {
    const std::size_t elements = a.elements - first < kBlock ? a.elements - first : kBlock;
    float* p = nullptr;
    if (a.master != nullptr) {
      p = a.master + first;
    } else if (a.master_rest != nullptr) {
      p = parameter.scratch();
      join_block(p, upper + first, a.master_rest + first, elements);
    } else {
      p = parameter.load(a.parameter_dtype, a.parameter, first, elements);
    }
    update_block(scalars, p, gradient.load(a.gradient_dtype, a.gradient, first, elements),
                 first_moment.load(a.first_moment_dtype, a.first_moment, first, elements),
                 second_moment.load(a.second_moment_dtype, a.second_moment, first, elements), elements);
    first_moment.store(a.first_moment_dtype, a.first_moment, first, elements);
    second_moment.store(a.second_moment_dtype, a.second_moment, first, elements);
    if (a.ema != nullptr) average_block(a.ema + first, p, scalars.ema_fresh, elements);
    if (a.master != nullptr) {
      cast(a.parameter_dtype, a.parameter + first * width(a.parameter_dtype), DType::f32,
           reinterpret_cast<const std::byte*>(p), elements);
    } else if (a.master_rest != nullptr) {
      split_block(p, upper + first, a.master_rest + first, elements);
    } else {
      parameter.store(a.parameter_dtype, a.parameter, first, elements);
    }
  }
}

// A square of two fp32 values is exact in double.
template <typename Storage>
double square(typename Storage::Stored stored) {
  const double value = Storage::load(stored);
  return value * value;
}

template <typename Storage>
double sum_of_squares(const typename Storage::Stored* values, std::size_t elements) {
  double lanes[kLanes] = {};
  const std::size_t whole = elements - elements % kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes) {
    for (std::size_t k = 0; k < kLanes; ++k) lanes[k] += square<Storage>(values[i + k]);
  }
  for (std::size_t k = 0; whole + k < elements; ++k) lanes[k] += square<Storage>(values[whole + k]);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  }
  return lanes[0];
}

double sum_of_squares(DType dtype, const std::byte* values, std::size_t elements) {
  return with_storage(dtype, [&](auto storage) {
    using Storage = decltype(storage);
    return sum_of_squares<Storage>(reinterpret_cast<const typename Storage::Stored*>(values), elements);
  });
}

}  // namespace

extern const OptimizerKernels kOptimizerKernels;
const OptimizerKernels kOptimizerKernels{SHARDPLAN_KERNEL_NAME, update, sum_of_squares, cast};

}  // namespace shardplan::SHARDPLAN_KERNEL_LEVEL
