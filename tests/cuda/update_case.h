// Random updates, cast and accumulate calls: the same on the CPU and on a GPU.
#pragma once

#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "shard/kernels/optimizer_update.h"
#include "tests/cuda/random_arrays.h"

namespace shardplan::test {

inline constexpr DType kKernelDTypes[] = {DType::f32, DType::bf16, DType::f16};

// Optimizer, dtypes, arrays, places and lengths by chance. Two made from equal seeds are equal.
class UpdateCase {
 public:
  explicit UpdateCase(std::uint32_t seed);

  const UpdateOptions& options() const { return options_; }
  // Over this case's own memory.
  UpdateArrays arrays();
  // In the order of UpdateArrays, those that there are.
  std::vector<RandomArray*> all();
  // "lion, parameter bf16, split master, 17 elements".
  std::string text() const;

 private:
  enum class Master { none, whole, split };
  std::size_t elements_ = 0;
  UpdateOptions options_;
  Master master_ = Master::none;
  std::optional<RandomArray> parameter_, master_array_, rest_, gradient_, first_moment_, second_moment_, ema_;
};

}  // namespace shardplan::test
