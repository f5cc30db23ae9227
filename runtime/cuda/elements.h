// Arrays whose dtype is known at run time, some elements at a time: what every CUDA kernel here is made of.
//
// constexpr functions, so that a kernel's arithmetic is also the host's: tests/cuda runs each kernel's elements on the
// host and compares bits with the CPU's kernels. A dtype is the same for all threads of a launch, so that branching on it
// costs next to nothing, and one compiled kernel serves all combinations.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/dtype.h"
#include "base/half.h"

namespace shardplan::cuda {

// Elements that one thread reads and writes at once: 16 bytes of fp32, 8 bytes of the others.
inline constexpr int kVector = 4;

// n elements as they lie in memory, fp32 in all words, 16-bit elements in the first half of them.
template <int n>
struct Words {
  std::uint32_t word[std::size_t{n}] = {};
};

// Aliases whatever lies there; one access if T is aligned to its size.
template <typename T, int n>
struct [[gnu::may_alias]] alignas(sizeof(T) * std::size_t{n}) Access {
  T value[std::size_t{n}];
};

constexpr std::uint64_t width_of(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

// n elements from element `first` on, which lies on a boundary of n elements.
template <int n>
constexpr Words<n> read(DType dtype, const std::byte* array, std::uint64_t first) {
  Words<n> words;
  const std::byte* at = array + first * width_of(dtype);
  if (dtype == DType::f32) {
    const auto got = *reinterpret_cast<const Access<std::uint32_t, n>*>(at);
    for (int i = 0; i < n; ++i) words.word[i] = got.value[i];
  } else if constexpr (n == 1) {
    words.word[0] = reinterpret_cast<const Access<std::uint16_t, n>*>(at)->value[0];
  } else {
    const auto got = *reinterpret_cast<const Access<std::uint32_t, n / 2>*>(at);
    for (int i = 0; i < n / 2; ++i) words.word[i] = got.value[i];
  }
  return words;
}

template <int n>
constexpr void write(DType dtype, std::byte* array, std::uint64_t first, const Words<n>& words) {
  std::byte* at = array + first * width_of(dtype);
  if (dtype == DType::f32) {
    Access<std::uint32_t, n> put{};
    for (int i = 0; i < n; ++i) put.value[i] = words.word[i];
    *reinterpret_cast<Access<std::uint32_t, n>*>(at) = put;
  } else if constexpr (n == 1) {
    reinterpret_cast<Access<std::uint16_t, n>*>(at)->value[0] = static_cast<std::uint16_t>(words.word[0]);
  } else {
    Access<std::uint32_t, n / 2> put{};
    for (int i = 0; i < n / 2; ++i) put.value[i] = words.word[i];
    *reinterpret_cast<Access<std::uint32_t, n / 2>*>(at) = put;
  }
}

// The 16 bits of element i.
template <int n>
constexpr std::uint16_t half_of(const Words<n>& words, int i) {
  return static_cast<std::uint16_t>(words.word[i / 2] >> (i % 2 * 16));
}

template <int n>
constexpr void set_half(Words<n>& words, int i, std::uint16_t bits16) {
  words.word[i / 2] |= static_cast<std::uint32_t>(bits16) << (i % 2 * 16);
}

template <int n>
struct Values {
  float value[std::size_t{n}] = {};
};

template <int n>
constexpr Values<n> widened(DType dtype, const Words<n>& words) {
  Values<n> values;
  for (int i = 0; i < n; ++i) {
    if (dtype == DType::f32) {
      values.value[i] = std::bit_cast<float>(words.word[i]);
    } else {
      values.value[i] = dtype == DType::bf16 ? bf16_to_fp32(half_of(words, i)) : fp16_to_fp32(half_of(words, i));
    }
  }
  return values;
}

// Rounded once to the dtype.
template <int n>
constexpr Words<n> narrowed(DType dtype, const Values<n>& values) {
  Words<n> words;
  for (int i = 0; i < n; ++i) {
    if (dtype == DType::f32) {
      words.word[i] = std::bit_cast<std::uint32_t>(values.value[i]);
    } else {
      set_half(words, i, dtype == DType::bf16 ? fp32_to_bf16(values.value[i]) : fp32_to_fp16(values.value[i]));
    }
  }
  return words;
}

// ---- Which elements a thread takes ----

struct Array {
  DType dtype = DType::f32;
  const std::byte* data = nullptr;  // null: there is no such array
};

// A range as `head` elements one by one, then `vectors` times kVector, then the rest one by one.
struct Cut {
  std::uint64_t head = 0;
  std::uint64_t vectors = 0;
  std::uint64_t elements = 0;
};

// The shortest head after which all arrays lie on a boundary of a vector; no vectors where there is none.
inline Cut cut_of(std::uint64_t elements, std::initializer_list<Array> arrays) {
  const auto aligned_after = [&](std::uint64_t head) {
    return std::all_of(arrays.begin(), arrays.end(), [&](const Array& array) {
      const std::uint64_t width = width_of(array.dtype);
      return (reinterpret_cast<std::uintptr_t>(array.data) + head * width) % (kVector * width) == 0 ||
             array.data == nullptr;
    });
  };
  for (std::uint64_t head = 0; head < kVector && head <= elements; ++head) {
    if (aligned_after(head)) return {head, (elements - head) / kVector, elements};
  }
  return {0, 0, elements};
}

// What thread `thread` of `threads` does of the range: body.at<n>(first element) for each of its parts. Every element is
// in exactly one part of one thread. Bodies load all they need before they store.
template <typename Body>
constexpr void take_part(const Cut& cut, std::uint64_t thread, std::uint64_t threads, const Body& body) {
  for (std::uint64_t i = thread; i < cut.vectors; i += threads) body.template at<kVector>(cut.head + i * kVector);
  const std::uint64_t in_vectors = cut.vectors * kVector;
  for (std::uint64_t i = thread; i < cut.elements - in_vectors; i += threads) {
    body.template at<1>(i < cut.head ? i : i + in_vectors);
  }
}

}  // namespace shardplan::cuda
