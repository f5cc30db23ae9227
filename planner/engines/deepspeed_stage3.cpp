#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/text.h"
#include "planner/engines/deepspeed_stages.h"
#include "planner/engines/pinned.h"

namespace shardplan {
namespace {

constexpr const char* kPartition = "deepspeed/runtime/zero/partition_parameters.py, Init._partition_param";
constexpr const char* kDefragment = "stage3.py, _create_fp16_partitions_with_defragmentation";
constexpr const char* kFp32 = "stage3.py, _create_fp32_partitions";
constexpr const char* kSetup = "stage3.py, _setup_for_real_optimizer";
constexpr const char* kCoordinator = "partitioned_param_coordinator.py, fetch_sub_module and __params_to_release";
constexpr const char* kSwapper = "deepspeed/runtime/swap_tensor/partitioned_param_swapper.py, _configure_aio";

using Class = MemoryClass;

std::uint64_t shard(const Owned& owned) {
  return deepspeed_shard_elements(owned.elements, owned.ranks);
}

// Trainable shards: what the optimizer of a rank updates.
struct Updated {
  std::uint64_t elements = 0;
  std::uint64_t on_host = 0;  // of sub-groups that are offloaded
  std::vector<std::uint64_t> groups;
  std::uint64_t largest_group = 0;
};

Updated updated_by(const DeepSpeedPlan& plan) {
  Updated updated{.elements = 0, .on_host = 0, .groups = sub_groups(plan.runs, plan.options), .largest_group = 0};
  const bool offloads = plan.options.offload_optimizer.device != OffloadDevice::none;
  const auto on_device =
      static_cast<std::size_t>((1 - plan.options.offload_optimizer.ratio) * static_cast<double>(updated.groups.size()));
  for (std::size_t i = 0; i < updated.groups.size(); ++i) {
    updated.elements += updated.groups[i];
    updated.largest_group = std::max(updated.largest_group, updated.groups[i]);
    if (offloads && (i >= on_device || plan.options.offload_optimizer.device == OffloadDevice::nvme)) {
      updated.on_host += updated.groups[i];
    }
  }
  return updated;
}

const Policy& policy_of(const DeepSpeedPlan& plan) {
  return plan.setup.policy;
}

std::uint64_t hidden_shards(const DeepSpeedPlan& plan) {
  if (plan.setup.optimizer != OptimizerKind::muon) return 0;
  return sum_elements(plan.runs, [&](const Owned& owned) {
    return owned.tensor->trainable && owned.updated.hidden_matrix ? shard(owned) : std::uint64_t{0};
  });
}

// Muon's momentum is kept in the dtype of communication: the parameter's (stage3.py, _create_momentum_buffer).
Bytes muon_moments(const DeepSpeedPlan& plan, std::uint64_t count) {
  const Bytes average = plan.setup.ema ? bytes_for(DType::f32, count) : Bytes{};
  return bytes_for(policy_of(plan).parameter, count) + average;
}

// Of so many of the trainable shards, hidden matrices in proportion.
Bytes moments_of(const DeepSpeedPlan& plan, std::uint64_t count) {
  if (count == 0) return Bytes{};
  const std::uint64_t all = sum_elements(plan.runs, [&](const Owned& owned) {
    if (!owned.tensor->trainable) return std::uint64_t{0};
    return shard(owned);
  });
  const auto of_count = static_cast<std::uint64_t>(
      static_cast<long double>(count) * static_cast<long double>(hidden_shards(plan)) / static_cast<long double>(all));
  return muon_moments(plan, of_count) + flat_moment_bytes(plan.setup, policy_of(plan), count - of_count, false);
}

std::uint64_t aligned(std::uint64_t elements, DType dtype, const DeepSpeedOptions& options) {
  // swap_tensor/utils.py, AIO_ALIGNED_BYTES x intra_op_parallelism.
  constexpr std::uint64_t kAlignedBytes = 1024;
  return round_up(elements, kAlignedBytes * options.aio.intra_op_parallelism * 8 / bits(dtype));
}

void add_parameters_on_device(const DeepSpeedPlan& plan, TermList& list) {
  const std::uint64_t shards = sum_elements(plan.runs, shard);
  const std::uint64_t whole = sum_elements(plan.runs, [](const Owned& owned) { return owned.elements; });
  list.add({"parameters: shards", Class::parameters, Tier::device, Span::always,
            sum_bytes(plan.runs,
                      [&](const Owned& owned) {
                        return kept_quantized(plan, owned) ? Bytes{} : bytes_for(owned.policy.parameter, shard(owned));
                      }),
            "ceil(elements / N) of each tensor x bytes per element",
            fmt::format("{} elements of {}", with_commas(shards), with_commas(whole)), kDefragment});
}

void add_quantized_shards(const DeepSpeedPlan& plan, TermList& list) {
  list.add({"parameters: frozen shards in 8 bits", Class::parameters, Tier::device, Span::always,
            sum_bytes(plan.runs,
                      [&](const Owned& owned) {
                        return kept_quantized(plan, owned) ? quantized_shard_bytes(owned) : Bytes{};
                      }),
            "ceil(elements / N) of each tensor x 1 B, and an fp32 scale for each group",
            "groups of at most 8,000 elements, in multiples of 8",
            "partition_parameters.py, Init._partition_param and CUDAQuantizer"});
}

// Shards that live on the host: one flat, pinned buffer for what is trained; frozen ones each on their own.
void add_parameters_on_host(const DeepSpeedPlan& plan, const Updated& updated, TermList& list) {
  const bool pin = plan.options.offload_param.pin_memory;
  const DType dtype = policy_of(plan).parameter;
  list.add({"parameters: trainable shards", Class::parameters, Tier::pinned, Span::always,
            pinned_block(bytes_for(dtype, updated.elements)),
            "ceil(elements / N) of each tensor x bytes per element, rounded up to a power of two",
            counted(updated.elements, dtype), "stage3.py, _create_param_groups_fp16_flat_cpu_memory"});
  const auto frozen = [&](const Owned& owned, bool persistent) {
    if (owned.tensor->trainable || kept_quantized(plan, owned)) return Bytes{};
    const bool small = owned.elements <= plan.options.stage3_param_persistence_threshold || owned.tensor->scales;
    if (small != persistent) return Bytes{};
    const Bytes bytes = bytes_for(owned.policy.parameter, shard(owned));
    return pin && !persistent ? pinned_block(bytes) : bytes;
  };
  list.add({"parameters: frozen shards", Class::parameters, pin ? Tier::pinned : Tier::pageable, Span::always,
            sum_bytes(plan.runs, [&](const Owned& owned) { return frozen(owned, false); }),
            "each rounded up to a power of two where pinned", "tensors above the persistence threshold", kPartition});
  list.add({"parameters: persistent frozen shards", Class::parameters, Tier::device, Span::always,
            sum_bytes(plan.runs, [&](const Owned& owned) { return frozen(owned, true); }),
            "ceil(elements / N) of each tensor x bytes per element", "tensors at most the persistence threshold",
            kPartition});
}

void add_parameters_in_files(const DeepSpeedPlan& plan, const Updated& updated, TermList& list) {
  const DeepSpeedOptions& options = plan.options;
  const DType dtype = policy_of(plan).parameter;
  const Bytes least = std::max(1_MiB, Bytes{options.aio.block_size});
  const auto swappable = [&](const Owned& owned) { return bytes_for(owned.policy.parameter, shard(owned)) >= least; };
  list.add({"parameters: shards", Class::parameters, Tier::file, Span::always,
            sum_bytes(plan.runs,
                      [&](const Owned& owned) {
                        if (!swappable(owned) || kept_quantized(plan, owned)) return Bytes{};
                        return bytes_for(dtype, aligned(shard(owned), dtype, options));
                      }),
            "shards of at least 1 MiB, aligned to 1 KiB x threads", fmt::format("the others stay on the host"),
            "partitioned_param_swapper.py, swappable_tensor"});
  const std::uint64_t kept = std::min(updated.elements, options.offload_param.max_in_cpu);
  list.add({"parameters: kept on the host", Class::parameters, Tier::pinned, Span::always,
            pinned_block(bytes_for(dtype, kept)),
            "min(elements, max_in_cpu) x bytes per element, rounded up to a power of two", counted(kept, dtype),
            "stage3.py, _create_param_groups_fp16_flat_cpu_memory"});
  const std::uint64_t buffers =
      checked_multiply(options.offload_param.buffer_count, aligned(options.offload_param.buffer_size, dtype, options));
  list.add({"swap buffers: parameters", Class::communication_buffers, Tier::pinned, Span::always,
            bytes_for(dtype, buffers), "buffer_count x buffer_size x bytes per element",
            fmt::format("{} buffers, {}", options.offload_param.buffer_count, counted(buffers, dtype)), kSwapper});
}

void add_parameters(const DeepSpeedPlan& plan, const Updated& updated, TermList& list) {
  add_quantized_shards(plan, list);
  switch (plan.options.offload_param.device) {
    case OffloadDevice::none:
      add_parameters_on_device(plan, list);
      break;
    case OffloadDevice::cpu:
      add_parameters_on_host(plan, updated, list);
      break;
    case OffloadDevice::nvme:
      add_parameters_in_files(plan, updated, list);
      break;
  }
  const std::uint64_t group = plan.options.zero_hpz_partition_size;
  if (group > 1) {
    const auto secondary = [&](const Owned& owned) {
      if (owned.tensor->scales) return Bytes{};
      return bytes_for(owned.policy.parameter,
                       checked_multiply(shard(owned), owned.ranks) / std::min(group, owned.ranks));
    };
    list.add({"parameters: secondary partition (hpZ)", Class::parameters, Tier::device, Span::always,
              sum_bytes(plan.runs, secondary), "padded elements / zero_hpz_partition_size x bytes per element",
              fmt::format("{} ranks share a copy", group), "partition_parameters.py, Init._partition_param_sec"});
  }
}

// At the turn from forward to backward most is kept: what is used again within max_reuse_distance, counted there and
// back; what computes; what is fetched ahead, as long as max_live_parameters allows it.
void add_gathered(const DeepSpeedPlan& plan, TermList& list) {
  const DeepSpeedOptions& options = plan.options;
  const DType dtype = policy_of(plan).parameter;
  const PersistentTensors persistent = persistent_tensors(plan.runs, options);
  list.add({"gathered parameters: persistent", Class::gathered_parameters, Tier::device, Span::always,
            bytes_for(dtype, persistent.padded_elements), "padded elements of tensors at most the threshold, whole",
            fmt::format("{} tensors, {}", persistent.tensors, counted(persistent.padded_elements, dtype)),
            "parameter_offload.py, mark_persistent_parameters"});
  std::uint64_t largest = 0;
  const std::uint64_t whole = sum_elements(plan.runs, [&](const Owned& owned) {
    if (owned.tensor->scales) return std::uint64_t{0};
    largest = std::max(largest, owned.elements);
    return checked_multiply(shard(owned), owned.ranks);
  });
  const std::uint64_t released = whole - std::min(whole, persistent.padded_elements);
  const std::uint64_t kept = std::min(options.stage3_max_reuse_distance / 2, released);
  const std::uint64_t room = options.stage3_max_live_parameters - std::min(options.stage3_max_live_parameters, kept);
  const std::uint64_t prefetch = options.stage3_allgather_sequential ? 1 : options.stage3_prefetch_bucket_size;
  const std::uint64_t ahead = std::min({prefetch, room, released});
  const std::uint64_t held = std::min(released, checked_add(checked_add(kept, largest), ahead));
  list.add({"gathered parameters: reused, computing, prefetched", Class::gathered_parameters, Tier::device,
            Span::backward, bytes_for(dtype, held),
            "min(all that is released, max_reuse_distance / 2 + the largest tensor + prefetch) x bytes per element",
            fmt::format("{} of {} elements, at the turn to the backward", with_commas(held), with_commas(released)),
            kCoordinator});
  if (options.stage3_allgather_sequential) return;
  const DType wire = options.zero_quantized_weights ? DType::u8 : dtype;
  list.add({"all-gather buffer", Class::communication_buffers, Tier::device, Span::backward,
            bytes_for(wire, std::min(released, std::max(ahead, largest))),
            "max(prefetch, the largest tensor) x bytes per element", "copied out when it has come",
            "partition_parameters.py, AllGatherCoalescedHandle.wait"});
}

// What a bucket is copied into on its way: into the wire's dtype where that is another; then partitions of all tensors
// side by side, or, without reduce_scatter, the bucket scaled.
void add_reduction(const DeepSpeedPlan& plan, std::uint64_t bucket, TermList& list) {
  const DType dtype = policy_of(plan).parameter;
  const DType wire = wire_dtype(plan);
  const auto add = [&](const char* what, const char* source) {
    list.add({what, Class::communication_buffers, Tier::device, Span::backward, bytes_for(wire, bucket),
              "min(elements, reduce_bucket_size) x bytes per element", counted(bucket, wire), source});
  };
  if (wire != dtype) add("gradients of a bucket: in the wire's dtype", "stage3.py, __avg_scatter_grads");
  if (plan.options.contiguous_gradients && !plan.options.reduce_scatter) {
    return add("all-reduced bucket, scaled", "stage3.py, __avg_scatter_contiguous_grads");
  }
  if (gradients_quantized(plan)) return add_quantized_gradients(plan, list);
  add("reduce-scatter input", "deepspeed/runtime/comm/coalesced_collectives.py, reduce_scatter_coalesced");
}

void add_buckets(const DeepSpeedPlan& plan, const Updated& updated, TermList& list) {
  const DeepSpeedOptions& options = plan.options;
  const DType dtype = policy_of(plan).parameter;
  std::uint64_t trainable = 0;
  for (const TensorGroup& group : trainable_groups(plan.runs, plan.setup)) trainable += group.elements;
  if (updated.elements == 0) return;
  const std::uint64_t bucket = std::min(trainable, options.reduce_bucket_size);
  if (options.contiguous_gradients) {
    list.add({"reduce bucket", Class::communication_buffers, Tier::device, Span::always,
              bytes_for(dtype, options.reduce_bucket_size), "reduce_bucket_size x bytes per element",
              fmt::format("{}, whatever the model's size", counted(options.reduce_bucket_size, dtype)), kSetup});
  } else {
    list.add({"gradients waiting for their bucket", Class::communication_buffers, Tier::device, Span::backward,
              bytes_for(dtype, bucket), "min(elements, reduce_bucket_size) x bytes per element", counted(bucket, dtype),
              "stage3.py, __add_grad_to_ipg_bucket"});
  }
  add_reduction(plan, bucket, list);
  std::uint64_t matrices = 0;
  for (const TensorGroup& group : trainable_groups(plan.runs, plan.setup)) {
    if (group.hidden_matrices) matrices = checked_add(matrices, group.elements);
  }
  const std::uint64_t orthogonalised = std::min(matrices, options.reduce_bucket_size);
  list.add({"muon: gathered momentum of a bucket", Class::communication_buffers, Tier::device, Span::backward,
            bytes_for(dtype, orthogonalised), "min(elements of matrices, reduce_bucket_size) x bytes per element",
            counted(orthogonalised, dtype), "stage3.py, _apply_distributed_muon_update"});
  list.add({"the gradient that is being computed", Class::communication_buffers, Tier::device, Span::backward,
            largest_tensor_bytes(plan.runs), "the largest tensor", "copied into the bucket when it is there",
            "stage3.py, __add_grad_to_ipg_bucket"});
}

void add_states_on_device(const DeepSpeedPlan& plan, const Updated& updated, TermList& list) {
  const Policy& policy = policy_of(plan);
  const std::uint64_t n = updated.elements - updated.on_host;
  const DType master = master_dtype(policy);
  // In one dtype, the shard itself is updated.
  const bool copied = master != policy.parameter || plan.options.offload_param.device != OffloadDevice::none;
  list.add({"optimizer states: master", Class::optimizer_states, Tier::device, Span::always,
            copied ? bytes_for(master, n) : Bytes{}, "trainable shards x bytes per element", counted(n, master),
            kFp32});
  list.add({"optimizer states: moments", Class::optimizer_states, Tier::device, Span::always, moments_of(plan, n),
            "trainable shards x bytes of each state", fmt::format("{} elements", with_commas(n)),
            "the optimizer's first step, on each sub-group"});
  if (n == 0) return;
  const DType accumulation = accumulation_dtype(plan, policy);
  list.add({"gradients of a sub-group: in the master's dtype", Class::gradients, Tier::device, Span::update,
            bytes_for(master, updated.largest_group), "largest sub-group x bytes per element",
            counted(updated.largest_group, master), "stage3.py, _prepare_fp32_grad_for_sub_group"});
  if (accumulation != master) {
    list.add({"gradients of a sub-group: flat", Class::gradients, Tier::device, Span::update,
              bytes_for(accumulation, updated.largest_group), "largest sub-group x bytes per element",
              counted(updated.largest_group, accumulation), "stage3.py, _prepare_fp32_grad_for_sub_group"});
  }
}

void add_states_on_host(const DeepSpeedPlan& plan, const Updated& updated, TermList& list) {
  const Policy& policy = policy_of(plan);
  const DType master = master_dtype(policy);
  const std::uint64_t n = updated.on_host;
  list.add({"optimizer states: master", Class::optimizer_states, Tier::pageable, Span::always, bytes_for(master, n),
            "trainable shards x bytes per element", fmt::format("{}, never pinned", counted(n, master)), kFp32});
  list.add({"optimizer states: moments", Class::optimizer_states, Tier::pageable, Span::always, moments_of(plan, n),
            "trainable shards x bytes of each state", fmt::format("{} elements, never pinned", with_commas(n)),
            "deepspeed/ops/adam/cpu_adam.py"});
  // One buffer for each offloaded sub-group: the last ones.
  Bytes gradients;
  const bool pin = plan.options.offload_optimizer.pin_memory;
  std::uint64_t left = n;
  std::for_each(updated.groups.rbegin(), updated.groups.rend(), [&](std::uint64_t group) {
    if (left == 0) return;
    const Bytes bytes = bytes_for(master, group);
    gradients += pin ? pinned_block(bytes) : bytes;
    left -= group;
  });
  list.add({"gradients: in the master's dtype", Class::gradients, pin ? Tier::pinned : Tier::pageable, Span::always,
            gradients, "each sub-group x bytes per element, rounded up to a power of two where pinned",
            fmt::format("{} sub-groups, {}", updated.groups.size(), counted(n, master)),
            "stage3.py, initialize_optimizer_states"});
}

void add_states_in_files(const DeepSpeedPlan& plan, const Updated& updated, TermList& list) {
  const Policy& policy = policy_of(plan);
  const DType master = master_dtype(policy);
  list.add({"optimizer states: master", Class::optimizer_states, Tier::file, Span::always,
            bytes_for(master, updated.on_host), "trainable shards x bytes per element",
            counted(updated.on_host, master), "swap_tensor/optimizer_utils.py, OptimizerSwapper"});
  list.add({"optimizer states: moments", Class::optimizer_states, Tier::file, Span::always,
            moments_of(plan, updated.on_host), "trainable shards x bytes of each state",
            fmt::format("{} elements", with_commas(updated.on_host)), "swap_tensor/optimizer_utils.py"});
  list.add({"gradients: in files", Class::gradients, Tier::file, Span::always, bytes_for(master, updated.on_host),
            "trainable shards x bytes per element", counted(updated.on_host, master),
            "optimizer_utils.py, swap_out_gradients"});
  const std::uint64_t buffers = checked_multiply(plan.options.offload_optimizer.buffer_count,
                                                 aligned(updated.largest_group, master, plan.options));
  list.add({"swap buffers: optimizer states", Class::communication_buffers, Tier::pinned, Span::always,
            bytes_for(master, buffers), "buffer_count x the largest sub-group x bytes per element",
            fmt::format("{} buffers, {}", plan.options.offload_optimizer.buffer_count, counted(buffers, master)),
            "optimizer_utils.py, SwapBufferManager"});
  list.add({"gradients: of one sub-group", Class::gradients, Tier::pageable, Span::always,
            bytes_for(master, updated.largest_group), "the largest sub-group x bytes per element",
            counted(updated.largest_group, master), "stage3.py, initialize_optimizer_states"});
}

void add_gradients(const DeepSpeedPlan& plan, const Updated& updated, TermList& list) {
  const DType accumulation = accumulation_dtype(plan, policy_of(plan));
  const Bytes bytes = bytes_for(accumulation, updated.elements);
  const auto& offload = plan.options.offload_optimizer;
  const bool host = offload.device != OffloadDevice::none;
  const Tier tier = !host ? Tier::device : offload.pin_memory ? Tier::pinned : Tier::pageable;
  list.add({"gradients: shards", Class::gradients, tier, Span::always,
            tier == Tier::pinned ? pinned_block(bytes) : bytes,
            tier == Tier::pinned ? "trainable shards x bytes per element, rounded up to a power of two"
                                 : "trainable shards x bytes per element",
            counted(updated.elements, accumulation), "stage3.py, grad_partitions_flat_buffer"});
}

}  // namespace

PersistentTensors persistent_tensors(const std::vector<OwnedRun>& runs, const DeepSpeedOptions& options) {
  PersistentTensors persistent;
  for_each_owned(runs, [&](const Owned& owned) {
    if (owned.tensor->scales) return;
    if (checked_add(owned.elements, persistent.elements) > options.stage3_model_persistence_threshold) return;
    if (owned.elements > options.stage3_param_persistence_threshold) return;
    ++persistent.tensors;
    persistent.elements += owned.elements;
    persistent.padded_elements += checked_multiply(shard(owned), owned.ranks);
  });
  return persistent;
}

std::vector<std::uint64_t> sub_groups(const std::vector<OwnedRun>& runs, const DeepSpeedOptions& options) {
  std::vector<std::uint64_t> groups;
  std::uint64_t open = 0;
  for_each_owned(runs, [&](const Owned& owned) {
    if (!owned.tensor->trainable) return;
    open = checked_add(open, shard(owned));
    if (open < options.sub_group_size) return;
    groups.push_back(open);
    open = 0;
  });
  if (open > 0) groups.push_back(open);
  return groups;
}

void add_stage3(const DeepSpeedPlan& plan, TermList& list) {
  const Updated updated = updated_by(plan);
  add_parameters(plan, updated, list);
  if (!plan.catalog.count_only) add_gathered(plan, list);
  add_gradients(plan, updated, list);
  if (!plan.catalog.count_only) add_buckets(plan, updated, list);
  add_states_on_device(plan, updated, list);
  if (plan.options.offload_optimizer.device == OffloadDevice::cpu) add_states_on_host(plan, updated, list);
  if (plan.options.offload_optimizer.device == OffloadDevice::nvme) add_states_in_files(plan, updated, list);
}

}  // namespace shardplan
