// The kernels of shard/kernels for one thread of a GPU: what launch_each (runtime/cuda/launch.h) runs, and what
// tests/cuda runs on the host to compare bits with the CPU's loops.
#pragma once

#include "runtime/cuda/elements.h"
#include "shard/kernels/optimizer_formulas.h"
#include "shard/kernels/split_master.h"

namespace shardplan::cuda {

// to = from, rounded once.
struct CastElements {
  DType to_dtype = DType::f32;
  std::byte* to = nullptr;
  DType from_dtype = DType::f32;
  const std::byte* from = nullptr;

  template <int n>
  constexpr void at(std::uint64_t first) const {
    write<n>(to_dtype, to, first, narrowed(to_dtype, widened(from_dtype, read<n>(from_dtype, from, first))));
  }
};

// sum = sum + part in fp32, rounded once.
struct AccumulateElements {
  DType sum_dtype = DType::f32;
  std::byte* sum = nullptr;
  DType part_dtype = DType::f32;
  const std::byte* part = nullptr;

  template <int n>
  constexpr void at(std::uint64_t first) const {
    const Words<n> stored = read<n>(sum_dtype, sum, first);
    const Values<n> more = widened(part_dtype, read<n>(part_dtype, part, first));
    Values<n> values = widened(sum_dtype, stored);
    for (int i = 0; i < n; ++i) values.value[i] = values.value[i] + more.value[i];
    write<n>(sum_dtype, sum, first, narrowed(sum_dtype, values));
  }
};

// optimizer_update.h, in one pass: everything is loaded before anything waits for it.
template <typename Optimizer>
struct UpdateElements {
  UpdateScalars scalars;
  UpdatePointers arrays;

  template <int n>
  constexpr void at(std::uint64_t first) const {
    const UpdatePointers& a = arrays;
    constexpr bool kFirst = Optimizer::kMoments > 0;
    constexpr bool kSecond = Optimizer::kMoments > 1;
    const bool split = a.master_rest != nullptr;
    auto* const master = reinterpret_cast<std::byte*>(a.master);
    auto* const rest = reinterpret_cast<std::byte*>(a.master_rest);
    auto* const ema = reinterpret_cast<std::byte*>(a.ema);

    const Words<n> stored_p =
        master != nullptr ? read<n>(DType::f32, master, first) : read<n>(a.parameter_dtype, a.parameter, first);
    const Words<n> stored_rest = split ? read<n>(DType::bf16, rest, first) : Words<n>{};
    const Words<n> stored_g = read<n>(a.gradient_dtype, a.gradient, first);
    const Words<n> stored_m = kFirst ? read<n>(a.first_moment_dtype, a.first_moment, first) : Words<n>{};
    const Words<n> stored_v = kSecond ? read<n>(a.second_moment_dtype, a.second_moment, first) : Words<n>{};
    const Words<n> stored_ema = ema != nullptr ? read<n>(DType::f32, ema, first) : Words<n>{};

    Values<n> p = split ? joined<n>(stored_p, stored_rest)
                        : widened(master != nullptr ? DType::f32 : a.parameter_dtype, stored_p);
    const Values<n> g = widened(a.gradient_dtype, stored_g);
    Values<n> m = widened(a.first_moment_dtype, stored_m);
    Values<n> v = widened(a.second_moment_dtype, stored_v);
    for (int i = 0; i < n; ++i) {
      Optimizer::update(scalars, p.value[i], g.value[i] * scalars.gradient_factor, m.value[i], v.value[i]);
    }

    if constexpr (kFirst) write<n>(a.first_moment_dtype, a.first_moment, first, narrowed(a.first_moment_dtype, m));
    if constexpr (kSecond) write<n>(a.second_moment_dtype, a.second_moment, first, narrowed(a.second_moment_dtype, v));
    if (ema != nullptr) {
      Values<n> average = widened(DType::f32, stored_ema);
      for (int i = 0; i < n; ++i) {
        average.value[i] = formulas::lerp(average.value[i], p.value[i], scalars.ema_fresh);
      }
      write<n>(DType::f32, ema, first, narrowed(DType::f32, average));
    }
    if (split) {
      store_split<n>(p, a.parameter, rest, first);
      return;
    }
    if (master != nullptr) write<n>(DType::f32, master, first, narrowed(DType::f32, p));
    write<n>(a.parameter_dtype, a.parameter, first, narrowed(a.parameter_dtype, p));
  }

 private:
  template <int n>
  static constexpr Values<n> joined(const Words<n>& parameter, const Words<n>& rest) {
    Values<n> values;
    for (int i = 0; i < n; ++i) values.value[i] = join_master(half_of(parameter, i), half_of(rest, i));
    return values;
  }
  template <int n>
  static constexpr void store_split(const Values<n>& master, std::byte* parameter, std::byte* rest,
                                    std::uint64_t first) {
    Words<n> upper;
    Words<n> lower;
    for (int i = 0; i < n; ++i) {
      const SplitMaster halves = split_master(master.value[i]);
      set_half(upper, i, halves.parameter);
      set_half(lower, i, halves.rest);
    }
    write<n>(DType::bf16, parameter, first, upper);
    write<n>(DType::bf16, rest, first, lower);
  }
};

inline constexpr int kSumLanes = 32;  // of arrays.h, and of a warp

// One lane of the sum of squares (arrays.h): elements lane, lane + 32, ... added in order. The next kAhead elements are
// read while the last ones are added: the additions wait for each other, the memory does not wait for them.
constexpr double lane_of_squares(DType dtype, const std::byte* values, std::uint64_t elements, std::uint64_t lane) {
  constexpr int kAhead = 32;
  constexpr std::uint64_t kSpan = std::uint64_t{kAhead} * kSumLanes;
  std::uint32_t next[kAhead] = {};
  const auto read_ahead = [&](std::uint64_t block) {
    for (int i = 0; i < kAhead; ++i) {
      const std::uint64_t at = block + static_cast<std::uint64_t>(i) * kSumLanes + lane;
      next[i] = read<1>(dtype, values, at).word[0];
    }
  };
  const auto add = [dtype](double sum, std::uint32_t word) {
    const double value = widened(dtype, Words<1>{{word}}).value[0];
    return sum + value * value;
  };
  double sum = 0;
  const std::uint64_t whole = elements - elements % kSpan;
  if (whole > 0) read_ahead(0);
  for (std::uint64_t block = 0; block < whole; block += kSpan) {
    std::uint32_t now[kAhead] = {};
    for (int i = 0; i < kAhead; ++i) now[i] = next[i];
    if (block + kSpan < whole) read_ahead(block + kSpan);
    for (const std::uint32_t word : now) sum = add(sum, word);
  }
  for (std::uint64_t at = whole + lane; at < elements; at += kSumLanes) {
    sum = add(sum, read<1>(dtype, values, at).word[0]);
  }
  return sum;
}

}  // namespace shardplan::cuda
