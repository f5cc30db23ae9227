#include "planner/engines/megatron_fsdp.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/text.h"
#include "planner/engines/megatron_states.h"

namespace shardplan {
namespace {

constexpr const char* kBuffer = "megatron_fsdp/param_and_grad_buffer.py, _init_each_parameter_group_buffers";
constexpr const char* kGather = "megatron_fsdp/param_and_grad_buffer.py, AllGatherPipeline";
constexpr const char* kReduce = "megatron_fsdp/param_and_grad_buffer.py, GradReducePipeline";

using Class = MemoryClass;

// Of a row, what lies behind the first dim. 1 of a vector.
std::uint64_t row_elements(const Shape& shape) {
  std::uint64_t row = 1;
  for (std::size_t dim = 1; dim < shape.size(); ++dim) row = checked_multiply(row, shape[dim]);
  return row;
}

// Longer rows first, among equals in the order of the model.
std::vector<Shape> by_row(const std::vector<Shape>& parameters) {
  std::vector<Shape> sorted = parameters;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Shape& a, const Shape& b) { return row_elements(a) > row_elements(b); });
  return sorted;
}

std::uint64_t chunk_of(const std::vector<Shape>& sorted) {
  std::uint64_t chunk = std::max<std::uint64_t>(1, row_elements(sorted.front()));
  for (const Shape& shape : sorted) {
    const std::uint64_t row = std::max<std::uint64_t>(1, row_elements(shape));
    const std::uint64_t count = elements(shape);
    const bool fits = row == chunk || (chunk % row == 0 && count % chunk == 0) || count < chunk;
    if (!fits) chunk = std::lcm(chunk, row);
  }
  return chunk;
}

void take_fragments(std::vector<std::uint64_t>& fragments, std::uint64_t space) {
  std::erase_if(fragments, [&](std::uint64_t fragment) {
    if (fragment > space) return false;
    space -= fragment;
    return true;
  });
}

// The largest and the sum of the buckets of one kind of tensors.
struct Buckets {
  std::uint64_t elements = 0;  // of tensors, in units and outside
  std::uint64_t units = 0;     // padded
  std::uint64_t unit_count = 0;
  std::uint64_t largest_unit = 0;
  std::uint64_t others = 0;  // padded
  std::uint64_t largest_other = 0;
  std::uint64_t padded() const { return checked_add(units, others); }
};

struct Kind {
  std::uint64_t ranks = 1;
  Policy policy;
  bool trainable = true;
  bool operator==(const Kind&) const = default;
};

class BucketsOfKind {
 public:
  BucketsOfKind(const Kind& kind, bool padded, std::uint64_t bucket_size)
      : kind_(kind), ranks_(padded ? kind.ranks : 0), bucket_size_(bucket_size) {}

  void add(const OwnedRun& run) {
    std::vector<Shape> unit;
    for (const Owned& owned : run.tensors) {
      if (!holds(owned)) continue;
      result_.elements = checked_add(result_.elements, checked_multiply(run.count, owned.elements));
      if (run.block) {
        unit.push_back(owned.tensor->shape);
      } else {
        add_outside(owned);
      }
    }
    if (unit.empty()) return;
    const std::uint64_t length = megatron_fsdp_bucket(unit, ranks_);
    result_.units = checked_add(result_.units, checked_multiply(run.count, length));
    result_.unit_count += run.count;
    result_.largest_unit = std::max(result_.largest_unit, length);
  }

  Buckets finish() {
    close();
    return result_;
  }

 private:
  bool holds(const Owned& owned) const {
    return owned.elements > 0 && Kind{owned.ranks, owned.policy, owned.tensor->trainable} == kind_;
  }

  void add_outside(const Owned& owned) {
    open_.push_back(owned.tensor->shape);
    open_elements_ = checked_add(open_elements_, owned.elements);
    if (open_elements_ >= bucket_size_) close();
  }

  void close() {
    if (open_.empty()) return;
    const std::uint64_t length = megatron_fsdp_bucket(open_, ranks_);
    result_.others = checked_add(result_.others, length);
    result_.largest_other = std::max(result_.largest_other, length);
    open_.clear();
    open_elements_ = 0;
  }

  const Kind& kind_;
  std::uint64_t ranks_;
  std::uint64_t bucket_size_;
  std::vector<Shape> open_;
  std::uint64_t open_elements_ = 0;
  Buckets result_;
};

std::vector<Kind> kinds_of(const std::vector<OwnedRun>& runs) {
  std::vector<Kind> kinds;
  for (const OwnedRun& run : runs) {
    for (const Owned& owned : run.tensors) {
      const Kind kind{owned.ranks, owned.policy, owned.tensor->trainable};
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
    }
  }
  return kinds;
}

// What is under way, over all kinds.
struct InFlight {
  std::uint64_t unit_elements = 0;  // of units, without padding: what the mean is of
  std::uint64_t unit_count = 0;
  std::uint64_t sharded_units = 0;  // padded
  std::uint64_t largest_unit = 0;
  std::uint64_t trainable = 0;  // padded
  std::uint64_t largest = 0;    // bucket
  Bytes outside;
  DType parameter = DType::bf16;
};

// megatron_fsdp.py: "cap to 1B elements", which takes the larger.
std::uint64_t communication_unit(const InFlight& flight, const MegatronOptions& options, bool parameters) {
  if (options.suggested_communication_unit_size) return *options.suggested_communication_unit_size;
  constexpr std::uint64_t kLeast = 1'000'000'000;
  if (!parameters || flight.unit_count == 0) return std::max(kLeast, options.ddp_bucket_size.value_or(0));
  return std::max(kLeast, checked_multiply(2, flight.unit_elements / flight.unit_count));
}

void add_in_flight(const InFlight& flight, const MegatronOptions& options, MegatronSharding sharding, TermList& list) {
  const bool parameters = sharding == MegatronSharding::optim_grads_params;
  const std::uint64_t unit = communication_unit(flight, options, parameters);
  const bool twice = options.fsdp_double_buffer;
  const Span span = twice ? Span::always : Span::backward;
  const auto at_most = [&](std::uint64_t all, std::uint64_t largest, std::uint64_t waiting) {
    const std::uint64_t two = checked_multiply(2, largest);
    return std::min(all, twice ? two : checked_add(two, waiting));
  };
  if (parameters) {
    list.add({"gathered parameters: outside of units", Class::gathered_parameters, Tier::device, Span::always,
              flight.outside, "padded elements x bytes per element", "kept between steps", kGather});
    const std::uint64_t gathered = at_most(flight.sharded_units, flight.largest_unit, unit / 2);
    list.add({"gathered parameters: units", Class::gathered_parameters, Tier::device, span,
              bytes_for(flight.parameter, gathered),
              twice ? "two of the largest unit" : "min(all units, 2 x the largest + what is gathered ahead)",
              fmt::format("{} elements, {} ahead", with_commas(gathered), with_commas(unit / 2)), kGather});
  }
  if (sharding >= MegatronSharding::optim_grads) {
    const std::uint64_t waiting = at_most(flight.trainable, flight.largest, unit);
    list.add({"gradients of buckets on their way", Class::communication_buffers, Tier::device, span,
              bytes_for(options.main_grads_dtype, waiting),
              twice ? "two of the largest bucket" : "min(all buckets, 2 x the largest + what waits for its reduction)",
              fmt::format("{} elements, {} may wait", with_commas(waiting), with_commas(unit)), kReduce});
  }
}

void add_kind(const Setup& setup, const std::vector<OwnedRun>& runs, const MegatronOptions& options,
              MegatronSharding sharding, const Kind& kind, const Buckets& buckets, TermList& list) {
  const bool parameters = sharding == MegatronSharding::optim_grads_params;
  const auto held = [&](bool sharded) { return sharded ? buckets.padded() / kind.ranks : buckets.padded(); };
  const std::string inputs = fmt::format("{} elements of {}, N = {}", with_commas(buckets.elements),
                                         with_commas(buckets.padded()), kind.ranks);
  const char* formula = "buckets padded to N chunks of rows, whole or 1/N by strategy, x bytes per element";
  list.add({kind.trainable ? "parameters" : "parameters: frozen", Class::parameters, Tier::device, Span::always,
            bytes_for(kind.policy.parameter, held(parameters)), formula, inputs, kBuffer});
  if (!kind.trainable) return;
  list.add({"gradients: main", Class::gradients, Tier::device, Span::always,
            bytes_for(options.main_grads_dtype, held(sharding >= MegatronSharding::optim_grads)), formula, inputs,
            kBuffer});
  const bool states = sharding >= MegatronSharding::optim;
  const TensorGroup group{.ranks = kind.ranks, .policy = kind.policy};
  add_megatron_states({.master = bytes_for(options.main_params_dtype, held(states)),
                       .moments = states ? megatron_shard_moments(setup, group, options, held(true))
                                         : megatron_whole_moments(setup, runs, group, options),
                       .formula = formula,
                       .inputs = inputs,
                       .source = kBuffer},
                      options, list);
}

}  // namespace

std::uint64_t megatron_fsdp_bucket(const std::vector<Shape>& parameters, std::uint64_t ranks) {
  if (parameters.empty()) return 0;
  const std::vector<Shape> sorted = by_row(parameters);
  const std::uint64_t chunk = chunk_of(sorted);
  std::vector<std::uint64_t> regular;
  std::vector<std::uint64_t> fragments;
  for (const Shape& shape : sorted) (elements(shape) < chunk ? fragments : regular).push_back(elements(shape));
  std::uint64_t end = 0;
  while (!regular.empty()) {
    const std::uint64_t count = regular.front();
    regular.erase(regular.begin());
    const std::uint64_t rest = count % chunk;
    end = checked_add(end, round_up(count, chunk));
    if (rest == 0) continue;
    // The rest of a second parameter shares its chunk, from the other end; fragments fill what is left.
    std::uint64_t space = chunk - rest;
    const auto second = std::find_if(regular.begin(), regular.end(), [&](std::uint64_t other) {
      return other % chunk != 0 && rest + other % chunk <= chunk;
    });
    if (second != regular.end()) {
      space -= *second % chunk;
      end = checked_add(end, *second / chunk * chunk);
      regular.erase(second);
    }
    take_fragments(fragments, space);
  }
  end = std::accumulate(fragments.begin(), fragments.end(), end, checked_add);
  return ranks == 0 ? end : round_up(end, checked_multiply(ranks, chunk));
}

void add_megatron_fsdp(const Setup& setup, const std::vector<OwnedRun>& runs, const MegatronOptions& options,
                       MegatronSharding sharding, TermList& list) {
  InFlight flight;
  for (const Kind& kind : kinds_of(runs)) {
    const std::uint64_t bucket_size =
        options.ddp_bucket_size.value_or(std::max<std::uint64_t>(40'000'000, checked_multiply(1'000'000, kind.ranks)));
    BucketsOfKind of_kind(kind, sharding != MegatronSharding::no_shard, bucket_size);
    for (const OwnedRun& run : runs) of_kind.add(run);
    const Buckets buckets = of_kind.finish();
    add_kind(setup, runs, options, sharding, kind, buckets, list);
    flight.unit_elements = checked_add(flight.unit_elements, buckets.units);
    flight.unit_count = std::max(flight.unit_count, buckets.unit_count);
    if (kind.ranks > 1) {
      flight.sharded_units = checked_add(flight.sharded_units, buckets.units);
      flight.largest_unit = checked_add(flight.largest_unit, buckets.largest_unit);
      flight.outside += bytes_for(kind.policy.parameter, buckets.others);
      flight.parameter = kind.policy.parameter;
    }
    if (kind.trainable && kind.ranks > 1) {
      flight.trainable = checked_add(flight.trainable, buckets.padded());
      flight.largest = std::max({flight.largest, buckets.largest_unit, buckets.largest_other});
    }
  }
  add_in_flight(flight, options, sharding, list);
}

}  // namespace shardplan
