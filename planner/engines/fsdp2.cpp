#include "planner/engines/fsdp2.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "planner/engines/owned.h"
#include "planner/engines/pinned.h"

namespace shardplan {
namespace {

constexpr const char* kParam = "torch/distributed/fsdp/_fully_shard/_fsdp_param.py, FSDPParam._init_sharded_param";
constexpr const char* kGroup = "torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py, unshard and post_backward";
constexpr const char* kCollectives = "torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, foreach_reduce";

// The dtype a sharded parameter is kept in: what the optimizer updates.
DType sharded_dtype(const Policy& policy) {
  return policy.master.value_or(policy.parameter);
}
DType kept_dtype(const Owned& owned) {
  return owned.tensor->trainable ? sharded_dtype(owned.policy) : owned.policy.parameter;
}
std::uint64_t shard(const Owned& owned) {
  return fsdp2_shard_elements(owned.tensor->shape, owned.ranks);
}

// One of fully_shard's parameter groups, gathered.
struct Group {
  Bytes gathered;       // in the compute copy's dtype, padded
  Bytes gradients;      // whole, of what is trained
  Bytes accumulated;    // the same in the reduction's dtype
  Bytes reduce_input;   // padded, in the reduction's dtype
  Bytes reduce_output;  // this rank's part, where the sharded gradient is a copy of it and no view
  Bytes sharded;        // this rank's part, as it is kept
  Group& operator+=(const Group& other) { return add(other, 1); }
  Group& add(const Group& other, std::uint64_t times) {
    gathered += times * other.gathered;
    gradients += times * other.gradients;
    accumulated += times * other.accumulated;
    reduce_input += times * other.reduce_input;
    reduce_output += times * other.reduce_output;
    sharded += times * other.sharded;
    return *this;
  }
};

// A gradient that is added to one from before, or cast, is there twice (_cast_and_view_sharded_grads).
Group group_of(const OwnedRun& run, const Setup& setup, const Fsdp2Options& options) {
  Group group;
  for (const Owned& owned : run.tensors) {
    if (owned.tensor->scales) continue;
    const std::uint64_t padded = checked_multiply(shard(owned), owned.ranks);
    group.gathered += bytes_for(owned.policy.parameter, padded);
    if (!owned.tensor->trainable) continue;
    const DType reduced = fsdp2_reduce_dtype(owned.policy, options);
    const DType kept = sharded_dtype(owned.policy);
    group.gradients += bytes_for(owned.policy.parameter, owned.elements);
    group.accumulated += bytes_for(fsdp2_waiting_dtype(owned.policy, options), owned.elements);
    group.reduce_input += bytes_for(reduced, padded);
    if (reduced != kept || (setup.accumulation > 1 && options.gradient_sync))
      group.reduce_output += bytes_for(reduced, shard(owned));
    group.sharded += bytes_for(kept, shard(owned));
  }
  return group;
}

struct Groups {
  Group root;
  Group block;  // the largest of each part
  Group all;    // the root's and all blocks' together
  std::uint64_t count = 0;
};

Groups groups_of(const std::vector<OwnedRun>& runs, const Setup& setup, const Fsdp2Options& options) {
  Groups groups;
  for (const OwnedRun& run : runs) {
    const Group group = group_of(run, setup, options);
    groups.all.add(group, run.count);
    if (!run.block) {
      groups.root += group;
      continue;
    }
    groups.count += run.count;
    groups.block.gathered = std::max(groups.block.gathered, group.gathered);
    groups.block.gradients = std::max(groups.block.gradients, group.gradients);
    groups.block.reduce_input = std::max(groups.block.reduce_input, group.reduce_input);
    groups.block.reduce_output = std::max(groups.block.reduce_output, group.reduce_output);
    groups.block.sharded = std::max(groups.block.sharded, group.sharded);
  }
  return groups;
}

// Whether blocks let go of what they gathered between a forward and its backward. Where gradients wait, parameters do too
// (torch/distributed/pipelining/stage.py: set_reshard_after_backward).
bool reshards(const Setup& setup, const Fsdp2Options& options) {
  return options.gradient_sync && options.reshard_after_forward.value_or(setup.stage == 3);
}

// Of one tensor's shard.
Bytes moments_of(const Owned& owned, const Setup& setup) {
  if (!owned.tensor->trainable) return Bytes{};
  UpdatedTensor local = owned.updated;
  if (!local.shape.empty()) local.shape.front() = divide_up(local.shape.front(), owned.ranks);
  OptimizerChoice optimizer = optimizer_choice(setup);
  optimizer.torchao = true;
  const Bytes average = setup.ema ? bytes_for(DType::f32, elements(local.shape)) : Bytes{};
  return state_bytes(local, optimizer, owned.policy) + average;
}

void add_states(TermList& list, const std::vector<OwnedRun>& runs, const Setup& setup, const Fsdp2Options& options) {
  const std::uint64_t padded = sum_elements(runs, shard);
  const std::uint64_t whole = sum_elements(runs, [](const Owned& owned) { return owned.elements; });
  const std::string inputs = fmt::format("{} elements of {}", with_commas(padded), with_commas(whole));
  const char* rows = "ceil(dim0 / N) rows of each parameter x bytes per element";
  const auto pinned = [&](Bytes bytes) { return options.pin_memory ? pinned_block(bytes) : bytes; };
  const Tier host = options.pin_memory ? Tier::pinned : Tier::pageable;
  const auto parameter = [&](const Owned& owned) {
    const Bytes bytes = bytes_for(kept_dtype(owned), shard(owned));
    return options.offload ? pinned(bytes) : bytes;
  };
  const auto gradient = [&](const Owned& owned) {
    if (!owned.tensor->trainable) return Bytes{};
    const Bytes bytes = bytes_for(sharded_dtype(owned.policy), shard(owned));
    return options.offload ? pinned(bytes) : bytes;
  };
  list.add({"parameters: sharded, the master", MemoryClass::parameters, options.offload ? host : Tier::device,
            Span::always, sum_bytes(runs, parameter), rows, inputs, kParam});
  if (!setup.optimizer_in_backward) {
    list.add({"gradients: sharded", MemoryClass::gradients, options.offload ? host : Tier::device,
              options.gradient_sync ? Span::step : Span::update, sum_bytes(runs, gradient), rows, inputs,
              kCollectives});
  }
  list.add({"optimizer states: moments", MemoryClass::optimizer_states, options.offload ? Tier::pageable : Tier::device,
            Span::always, sum_bytes(runs, [&](const Owned& owned) { return moments_of(owned, setup); }), rows, inputs,
            setup.optimizer == OptimizerKind::adam8bit
                ? "torchao/optim/adam.py, _AdamBase._new_buffer: of the local tensor"
                : "torch/optim/adam.py, Adam._init_group: zeros_like of the sharded parameter"});
}

void add_buffers(TermList& list, const Groups& groups, const Setup& setup, const Fsdp2Options& options) {
  const bool reshard = reshards(setup, options);
  const std::uint64_t two = std::min<std::uint64_t>(groups.count, 2);
  const std::string blocks =
      fmt::format("{} units that repeat, the largest {} B", groups.count, with_commas(groups.block.gathered.count()));
  list.add({"gathered parameters: the root", MemoryClass::gathered_parameters, Tier::device, Span::backward,
            groups.root.gathered, "padded elements of everything outside of blocks x bytes per element",
            "kept from its forward to its backward", kGroup});
  list.add({"gathered parameters: blocks", MemoryClass::gathered_parameters, Tier::device, Span::backward,
            reshard ? two * groups.block.gathered : groups.all.gathered - groups.root.gathered,
            reshard ? "the unit that computes + the flat buffer of the next one" : "every unit, kept after its forward",
            blocks, kGroup});
  const Bytes input = std::max(groups.root.reduce_input, groups.block.reduce_input);
  if (options.gradient_sync) {
    list.add({"gradients of the unit that computes", MemoryClass::communication_buffers, Tier::device, Span::backward,
              std::max(groups.root.gradients, groups.block.gradients),
              "elements of the largest unit x bytes per element", "not sharded yet", kGroup});
  } else {
    list.add({"gradients: whole, waiting", MemoryClass::gradients, Tier::device, Span::backward, groups.all.accumulated,
              "elements of all units x bytes of the reduction's dtype", "set_requires_gradient_sync(False)",
              "torch/distributed/fsdp/_fully_shard/_fsdp_param.py, FSDPParam.unsharded_grad_dtype"});
  }
  list.add({"reduce-scatter input", MemoryClass::communication_buffers, Tier::device, Span::backward, input,
            "padded elements of the largest unit x bytes of the reduction's dtype",
            "one is alive: reduce_scatter_max_input_buffers", kCollectives});
  list.add({"reduce-scatter output", MemoryClass::communication_buffers, Tier::device, Span::backward,
            std::max(groups.root.reduce_output, groups.block.reduce_output),
            "this rank's part of the largest unit x bytes of the reduction's dtype",
            "where it is cast to the gradient's dtype or added to it; else the gradient is a view of it",
            kCollectives});
  if (setup.optimizer_in_backward) {
    list.add({"gradients: sharded, of one unit", MemoryClass::gradients, Tier::device, Span::backward,
              std::max(groups.root.sharded, groups.block.sharded),
              "this rank's part of the largest unit x bytes per element", "updated and dropped when it is reduced",
              "_fsdp_collectives.py, foreach_reduce: post-accumulate-grad hooks"});
  }
}

// What units gather and reduce, as often as they do. Gathered once where it is kept.
Traffic traffic_of(const Catalog& catalog, const Setup& setup, const Fsdp2Options& options) {
  Setup sent = setup;
  sent.policy.wire = fsdp2_reduce_dtype(setup.policy, options);
  if (!options.gradient_sync) sent.accumulation = 1;  // once a step
  // All stages here shard parameters.
  sent.stage = 3;
  sent.cadence.reset();
  Traffic traffic = textbook_traffic(catalog, sent);
  if (!reshards(setup, options)) {
    traffic.gather_parameters = Bytes{traffic.gather_parameters.count() / 2};
    traffic.gathers /= 2;
  }
  traffic.textbook = traffic.total();
  return traffic;
}

}  // namespace

DType fsdp2_reduce_dtype(const Policy& policy, const Fsdp2Options& options) {
  return options.reduce_dtype.value_or(policy.wire);
}

DType fsdp2_waiting_dtype(const Policy& policy, const Fsdp2Options& options) {
  return options.reduce_dtype.value_or(sharded_dtype(policy));
}

std::uint64_t fsdp2_shard_elements(const Shape& shape, std::uint64_t ranks) {
  if (shape.empty()) return 1;
  if (shape.front() == 0) return 0;
  return checked_multiply(divide_up(shape.front(), ranks), elements(shape) / shape.front());
}

std::uint64_t fsdp2_last_shard_elements(const Shape& shape, std::uint64_t ranks) {
  const std::uint64_t before = checked_multiply(fsdp2_shard_elements(shape, ranks), ranks - 1);
  const std::uint64_t all = elements(shape);
  return all > before ? all - before : 0;
}

EngineTerms fsdp2_terms(const Catalog& catalog, const Setup& setup, const Fsdp2Options& options) {
  if (setup.stage < 2) {
    throw ConfigError("--zero", "",
                      fmt::format("fully_shard shards parameters, so there is no stage {} of it: expected 3, or 2 to "
                                  "keep them gathered after their forward",
                                  setup.stage));
  }
  const std::vector<OwnedRun> runs = owned_tensors(catalog, setup);
  EngineTerms terms;
  TermList list(terms.terms);
  add_states(list, runs, setup, options);
  if (!catalog.count_only) add_buffers(list, groups_of(runs, setup, options), setup, options);
  terms.traffic = traffic_of(catalog, setup, options);
  if (setup.policy.master && *setup.policy.master != setup.policy.parameter) {
    terms.notes.push_back(
        fmt::format("fsdp2 keeps sharded parameters in {}, which are the master, and gathers them in {}",
                    name(*setup.policy.master), name(setup.policy.parameter)));
  }
  if (setup.optimizer == OptimizerKind::adafactor) {
    terms.notes.emplace_back(
        "adafactor of torch 2.15 and of transformers 4.57 fails on fsdp2's parameters: sized as one that factors the "
        "rows "
        "of each rank");
  }
  if (!options.gradient_sync) {
    terms.notes.emplace_back(
        "fsdp2 in a pipeline of torch.distributed.pipelining: gathered parameters and whole gradients, in the "
        "reduction's "
        "dtype, stay from the first micro-batch to the last");
  } else if (setup.accumulation > 1) {
    terms.notes.emplace_back("fsdp2 reduces every micro-batch and adds into the sharded gradient");
  }
  return terms;
}

}  // namespace shardplan
