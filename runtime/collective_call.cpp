#include "runtime/collective_call.h"

#include <fmt/format.h>

#include <bit>

#include "base/error.h"

namespace shardplan {
namespace {

std::string show(const CollectiveCall::Field& field) {
  return field.text.empty() ? fmt::format("{} {}", field.name, field.value)
                            : fmt::format("{} {}", field.name, field.text);
}

KernelDType kernel_dtype(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return KernelDType::f32;
    case DType::bf16:
      return KernelDType::bf16;
    case DType::f16:
      return KernelDType::f16;
    default:
      break;
  }
  SHARDPLAN_CHECK(false, "a dtype that cannot be summed");
  return KernelDType::f32;
}

}  // namespace

CollectiveCall describe_call(const ReduceScatter& call) {
  return {.operation = "reduce_scatter",
          .same = {{{"wire dtype", static_cast<std::uint64_t>(call.wire), name(call.wire)},
                    {"arena", call.input.arena->group().id()},
                    {"input offset", call.input.offset},
                    {"elements", call.elements},
                    {"group size", static_cast<std::uint64_t>(call.group_size)},
                    {"scale, as bits,", std::bit_cast<std::uint32_t>(call.scale)},
                    {"staging bytes", call.staging_bytes},
                    {"equal pieces", call.equal_pieces ? 1U : 0U}}},
          .piece = call.mine};
}

CollectiveCall describe_call(const AllGather& call) {
  return {.operation = "all_gather",
          .same = {{{"dtype", static_cast<std::uint64_t>(call.dtype), name(call.dtype)},
                    {"input arena", call.input.arena->group().id()},
                    {"output arena", call.output.arena->group().id()},
                    {"output offset", call.output.offset},
                    {"elements", call.elements},
                    {"equal pieces", call.equal_pieces ? 1U : 0U}}},
          .piece = call.mine};
}

std::string difference_of(const CollectiveCall& call, int world_rank, const CollectiveCall& expected,
                          int expected_world_rank) {
  if (std::string_view(call.operation) != expected.operation) {
    return fmt::format("rank {} calls {} while rank {} calls {}", world_rank, call.operation, expected_world_rank,
                       expected.operation);
  }
  for (std::size_t i = 0; i < call.same.size(); ++i) {
    if (call.same[i].value == expected.same[i].value) continue;
    return fmt::format("rank {} calls it with {}, rank {} with {}", world_rank, show(call.same[i]), expected_world_rank,
                       show(expected.same[i]));
  }
  return {};
}

ReduceRange range_of(const ReduceScatter& call, std::size_t ranks) {
  return {.wire = kernel_dtype(call.wire),
          .output_dtype = kernel_dtype(call.output.dtype),
          .add = call.output.mode == ReductionOutput::Mode::add,
          .ranks = ranks,
          .group_size = call.group_size == kWholeGroup ? ranks : static_cast<std::size_t>(call.group_size),
          .scale = call.scale};
}

}  // namespace shardplan
