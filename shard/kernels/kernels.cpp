#include "shard/kernels/kernels.h"

namespace shardplan {
namespace {

Bytes once(DType dtype, std::uint64_t elements) {
  return bytes_for(dtype, elements);
}

Bytes twice(const Elements& array) {
  return 2 * once(array.dtype, array.elements);
}

}  // namespace

Bytes touched_by_cast(const Elements& to, const ConstElements& from) {
  return once(to.dtype, to.elements) + once(from.dtype, from.elements);
}

Bytes touched_by_accumulate(const Elements& sum, const ConstElements& part) {
  return twice(sum) + once(part.dtype, part.elements);
}

// A parameter beside a master is only written.
Bytes touched_by_update(const UpdateArrays& arrays) {
  const bool has_master = !arrays.master.empty();
  const Bytes parameter = once(arrays.parameter.dtype, arrays.parameter.elements);
  return (has_master ? parameter : 2 * parameter) + 2 * once(DType::f32, arrays.master.size()) +
         2 * once(DType::u16, arrays.master_rest.size()) + once(arrays.gradient.dtype, arrays.gradient.elements) +
         twice(arrays.first_moment) + twice(arrays.second_moment) + 2 * once(DType::f32, arrays.ema.size());
}

Bytes touched_by_norm(const ConstElements& values) {
  return once(values.dtype, values.elements);
}

}  // namespace shardplan
