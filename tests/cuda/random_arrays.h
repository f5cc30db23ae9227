// Arrays at odd places with every kind of value in them: zeros, subnormals, infinities, NaNs, and ordinary numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "shard/kernels/arrays.h"

namespace shardplan::test {

// Elements `start` to `start + elements` of a buffer that begins on a page: a second one made with the same random state
// has the same bytes.
class RandomArray {
 public:
  RandomArray(DType dtype, std::size_t start, std::size_t elements, std::mt19937& random);

  Elements elements() { return {dtype_, bytes_.data() + first_, elements_}; }
  std::span<float> floats() { return {reinterpret_cast<float*>(bytes_.data() + first_), elements_}; }
  std::span<std::uint16_t> halves() { return {reinterpret_cast<std::uint16_t*>(bytes_.data() + first_), elements_}; }
  // The whole buffer, what lies around the elements too: where a kernel must not write.
  std::span<std::byte> buffer() { return bytes_; }
  std::size_t first_byte() const { return first_; }
  DType dtype() const { return dtype_; }

 private:
  DType dtype_;
  std::size_t elements_;
  std::vector<std::byte> bytes_;
  std::size_t first_;
};

// Empty, or the first element that differs; a NaN equals any other NaN if `any_nan`.
std::string difference(RandomArray& actual, RandomArray& expected, bool any_nan = true);

}  // namespace shardplan::test
