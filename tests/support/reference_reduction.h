// Reductions as docs/numerics.md states them, one element at a time: what every communicator must equal bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/dtype.h"

namespace shardplan::test {

// Contribution of `rank` to `element`: differs in every element on every rank, spread over many binary orders of
// magnitude so that another order of summation gives other bits.
float contribution(int rank, std::uint64_t element);

// The bytes of `value` in a dtype (f32, bf16, f16), and back.
void store(DType dtype, float value, std::byte* at);
float load(DType dtype, const std::byte* at);

// values[r] is rank r's contribution. group_size 0: all ranks.
float reduce_in_tree_order(const std::vector<float>& values, int group_size, float scale);

}  // namespace shardplan::test
