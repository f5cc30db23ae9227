// sum[i] = sum[i] + part[i] in fp32, rounded once to the dtype of `sum`.
#pragma once

#include "shard/kernels/arrays.h"

namespace shardplan {

// fp32, bf16 and fp16 in any combination; as many elements; the arrays are the same or do not overlap.
void accumulate_elements(const Elements& sum, const ConstElements& part);

}  // namespace shardplan
