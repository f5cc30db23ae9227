#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "planner/engines/deepspeed_stages.h"
#include "planner/engines/pinned.h"

namespace shardplan {
namespace {

constexpr const char* kInit = "deepspeed/runtime/zero/stage_1_and_2.py, DeepSpeedZeroOptimizer.__init__";
constexpr const char* kGradients = "stage_1_and_2.py, reduce_independent_p_g_buckets_and_remove_grads";
constexpr const char* kBuckets = "stage_1_and_2.py, setup_buckets";
constexpr const char* kStep = "stage_1_and_2.py, step";
constexpr const char* kMoments = "the optimizer's first step, on the fp32 partition";
constexpr const char* kFused = "deepspeed/runtime/fp16/fused_optimizer.py, FP16_Optimizer";
constexpr const char* kUnfused = "deepspeed/runtime/fp16/unfused_optimizer.py, FP16_UnfusedOptimizer";
constexpr const char* kBf16 = "deepspeed/runtime/bf16_optimizer.py, BF16_Optimizer";

using Class = MemoryClass;

void add_frozen(const DeepSpeedPlan& plan, TermList& list) {
  list.add({"parameters: frozen", Class::parameters, Tier::device, Span::always,
            sum_bytes(plan.runs,
                      [](const Owned& owned) {
                        return owned.tensor->trainable ? Bytes{} : bytes_for(owned.policy.parameter, owned.elements);
                      }),
            "elements x bytes per element", "whole on every rank below stage 3",
            "stage_1_and_2.py: only what requires a gradient is in a flat buffer"});
}

// The engine's own all-reduce, outside of ZeRO. engine.py, buffered_allreduce_fallback: flattens 5e8 elements at once.
void add_allreduce_bucket(const TensorGroup& group, DType dtype, DType wire, TermList& list) {
  constexpr std::uint64_t kAllReduceElements = 500'000'000;
  if (group.ranks == 1) return;
  const std::uint64_t bucket = std::min(group.elements, kAllReduceElements);
  list.add({"all-reduce bucket", Class::communication_buffers, Tier::device, Span::backward, bytes_for(dtype, bucket),
            "min(elements, 5e8) x bytes per element", counted(bucket, dtype),
            "deepspeed/runtime/engine.py, allreduce_no_retain, MEMORY_OPT_ALLREDUCE_SIZE"});
  if (wire == dtype) return;
  list.add({"all-reduce bucket: in the wire's dtype", Class::communication_buffers, Tier::device, Span::backward,
            bytes_for(wire, bucket), "min(elements, 5e8) x bytes per element", counted(bucket, wire),
            "deepspeed/runtime/engine.py, allreduce_bucket"});
}

void add_stage0(const DeepSpeedPlan& plan, const TensorGroup& group, TermList& list) {
  const Policy& policy = group.policy;
  const std::uint64_t n = group.elements;
  const bool master = master_dtype(policy) != policy.parameter;
  const bool fused = plan.setup.optimizer == OptimizerKind::adamw || plan.setup.optimizer == OptimizerKind::adam;
  const char* source =
      !master ? "deepspeed/runtime/engine.py: the client's optimizer as it is" : (fused ? kFused : kUnfused);
  list.add({"parameters", Class::parameters, Tier::device, Span::always, bytes_for(policy.parameter, n),
            "elements x bytes per element", counted(n, policy.parameter), source});
  list.add({"gradients", Class::gradients, Tier::device, Span::step, bytes_for(policy.gradient, n),
            "elements x bytes per element", counted(n, policy.gradient), source});
  add_allreduce_bucket(group, policy.gradient, wire_dtype(plan), list);
  if (master) {
    list.add({"optimizer states: master", Class::optimizer_states, Tier::device, Span::always,
              bytes_for(master_dtype(policy), n), "elements x bytes per element", counted(n, master_dtype(policy)),
              source});
    list.add({"gradients: in the master's dtype", Class::gradients, Tier::device, Span::update,
              bytes_for(master_dtype(policy), n), "elements x bytes per element", counted(n, master_dtype(policy)),
              source});
  }
  list.add({"optimizer states: moments", Class::optimizer_states, Tier::device, Span::always,
            whole_moment_bytes(plan.setup, plan.runs, group, policy), "bytes of each state, in the shapes of tensors",
            fmt::format("{} elements", with_commas(n)),
            "the optimizer's first step: of flat groups with FusedAdam, else of each tensor"});
}

// Of the rank whose partition meets most: whole tensors, though it updates a part of the first and the last.
std::uint64_t most_met(const DeepSpeedPlan& plan, const TensorGroup& group, std::uint64_t partition) {
  std::vector<std::uint64_t> met(group.ranks);
  std::uint64_t start = 0;
  for_each_owned(plan.runs, [&](const Owned& owned) {
    if (!in_group(owned, group, plan.setup) || owned.elements == 0) return;
    const std::uint64_t last = start + owned.elements - 1;
    for (std::uint64_t rank = start / partition; rank <= last / partition; ++rank) met[rank] += owned.elements;
    start = last + 1;
  });
  return *std::max_element(met.begin(), met.end());
}

// Of a partition of stages 1 and 2 on the device.
Bytes partition_moments(const DeepSpeedPlan& plan, const TensorGroup& group, std::uint64_t partition) {
  if (!group.hidden_matrices || partition == 0) {
    return flat_moment_bytes(plan.setup, group.policy, partition, group.hidden_matrices);
  }
  const Bytes average = plan.setup.ema ? bytes_for(DType::f32, partition) : Bytes{};
  return bytes_for(accumulation_dtype(plan, group.policy), most_met(plan, group, partition)) + average;
}

// bf16 with fp32 gradients, at stage 1: gradients whole in fp32 all the time, states sharded.
void add_bf16_optimizer(const DeepSpeedPlan& plan, const TensorGroup& group, DType accumulation, TermList& list) {
  const Policy& policy = group.policy;
  const std::uint64_t flat = deepspeed_flat_elements(group.elements, group.ranks);
  const std::uint64_t partition = flat / group.ranks;
  list.add({"parameters: flat", Class::parameters, Tier::device, Span::always, bytes_for(policy.parameter, flat),
            "elements padded to 2 N x bytes per element", counted(flat, policy.parameter), kBf16});
  list.add({"gradients: flat", Class::gradients, Tier::device, Span::always, bytes_for(accumulation, flat),
            "elements padded to 2 N x bytes per element", counted(flat, accumulation), kBf16});
  const std::uint64_t in_flight = plan.options.bf16_immediate_grad_update ? group.largest : group.elements;
  list.add({"gradients: of one micro-batch", Class::communication_buffers, Tier::device, Span::backward,
            bytes_for(policy.parameter, in_flight),
            plan.options.bf16_immediate_grad_update ? "the largest tensor: added at once"
                                                    : "all elements: added after the backward",
            counted(in_flight, policy.parameter), "bf16_optimizer.py, update_hp_grads"});
  add_allreduce_bucket(group, accumulation, wire_dtype(plan), list);
  list.add({"optimizer states: master", Class::optimizer_states, Tier::device, Span::always,
            bytes_for(DType::f32, partition), "flat / N x 4 B", counted(partition, DType::f32), kBf16});
  list.add({"optimizer states: moments", Class::optimizer_states, Tier::device, Span::always,
            flat_moment_bytes(plan.setup, policy, partition, group.hidden_matrices), "flat / N x bytes of each state",
            fmt::format("{} elements", with_commas(partition)), kMoments});
}

// What a bucket is copied into on its way. Whole buckets span ranks, so a flat copy of their slices is all-reduced; with
// a context axis always in fp32.
void add_bucket_on_its_way(const DeepSpeedPlan& plan, const TensorGroup& group, TermList& list) {
  const DeepSpeedOptions& options = plan.options;
  if (group.ranks == 1) return;
  const DType dtype = group.policy.parameter;
  const std::uint64_t bucket = std::min(group.elements, options.reduce_bucket_size);
  if (options.reduce_scatter && options.use_multi_rank_bucket_allreduce) {
    list.add({"reduce bucket: its slices, flat", Class::communication_buffers, Tier::device, Span::backward,
              bytes_for(dtype, bucket), "min(elements, reduce_bucket_size) x bytes per element", counted(bucket, dtype),
              "stage_1_and_2.py, allreduce_bucket"});
  }
  const bool in_fp32 = options.reduce_scatter && plan.setup.parallel.context > 1;
  const DType wire = in_fp32 ? DType::f32 : wire_dtype(plan);
  if (wire == dtype) return;
  list.add({"reduce bucket: in the wire's dtype", Class::communication_buffers, Tier::device, Span::backward,
            bytes_for(wire, bucket), "min(elements, reduce_bucket_size) x bytes per element", counted(bucket, wire),
            "stage_1_and_2.py, allreduce_bucket and gradient_reduction_w_predivide"});
}

void add_buckets(const DeepSpeedPlan& plan, const TensorGroup& group, TermList& list) {
  const DeepSpeedOptions& options = plan.options;
  const DType dtype = group.policy.parameter;
  if (!options.contiguous_gradients && options.offload_optimizer.device == OffloadDevice::none) {
    const std::uint64_t waiting = std::min(group.elements, options.reduce_bucket_size);
    list.add({"gradients waiting for their bucket, and its copy", Class::communication_buffers, Tier::device,
              Span::backward, 2 * bytes_for(dtype, waiting),
              "2 x min(elements, reduce_bucket_size) x bytes per element", counted(waiting, dtype),
              "stage_1_and_2.py, allreduce_bucket"});
    return;
  }
  const std::uint64_t buckets = options.overlap_comm.value_or(false) ? 2 : 1;
  list.add(
      {"reduce buckets", Class::communication_buffers, Tier::device, Span::backward,
       buckets * bytes_for(dtype, options.reduce_bucket_size),
       "reduce_bucket_size x bytes per element, twice with overlap_comm",
       fmt::format("{}, {} of them, whatever the model's size", counted(options.reduce_bucket_size, dtype), buckets),
       kBuckets});
  list.add({"the gradient that is being computed", Class::communication_buffers, Tier::device, Span::backward,
            bytes_for(dtype, group.largest), "the largest tensor", counted(group.largest, dtype), kGradients});
  add_bucket_on_its_way(plan, group, list);
}

void add_offloaded(const DeepSpeedPlan& plan, const TensorGroup& group, std::uint64_t partition, TermList& list) {
  const bool pin = plan.options.offload_optimizer.pin_memory;
  const Tier host = pin ? Tier::pinned : Tier::pageable;
  const auto held = [&](DType dtype, std::uint64_t elements) {
    const Bytes bytes = bytes_for(dtype, elements);
    return pin ? pinned_block(bytes) : bytes;
  };
  const char* formula =
      pin ? "flat / N x bytes per element, rounded up to a power of two" : "flat / N x bytes per element";
  const DType parameter = group.policy.parameter;
  const DType master = master_dtype(group.policy);
  const auto add = [&](const char* what, Class memory_class, DType dtype, const char* source) {
    list.add(
        {what, memory_class, host, Span::always, held(dtype, partition), formula, counted(partition, dtype), source});
  };
  add("optimizer states: master", Class::optimizer_states, master, kInit);
  add("gradients: in the master's dtype", Class::gradients, master, "stage_1_and_2.py, initialize_optimizer_states");
  add("parameters: the updated partition on its way back", Class::parameters, parameter,
      "stage_1_and_2.py, param_buffer_of_bit16_for_cpu_offload_groups");
  if (plan.setup.accumulation > 1) {
    add("gradients: sums of micro-batches", Class::gradients, parameter, "stage_1_and_2.py, accumulated_grads_in_cpu");
  }
  list.add({"optimizer states: moments", Class::optimizer_states, Tier::pageable, Span::always,
            flat_moment_bytes(plan.setup, group.policy, partition, group.hidden_matrices),
            "flat / N x bytes of each state", fmt::format("{} elements, never pinned", with_commas(partition)),
            "deepspeed/ops/adam/cpu_adam.py, DeepSpeedCPUAdam.step"});
  if (plan.catalog.count_only) return;  // no tensors are known
  list.add({"gradients: copy of one tensor", Class::communication_buffers, host, Span::always,
            held(parameter, group.largest), "the largest tensor", counted(group.largest, parameter),
            "stage_1_and_2.py, temp_grad_buffer_for_cpu_offload"});
  list.add({"gradients: one tensor on its way to the host", Class::communication_buffers, Tier::device, Span::always,
            bytes_for(parameter, group.largest), "the largest tensor", counted(group.largest, parameter),
            "stage_1_and_2.py, temp_grad_buffer_for_gpu_offload"});
}

void add_on_device(const DeepSpeedPlan& plan, const TensorGroup& group, std::uint64_t partition, TermList& list) {
  const Policy& policy = group.policy;
  const DType accumulation = accumulation_dtype(plan, policy);
  const DType master = master_dtype(policy);
  if (plan.setup.stage == 1) {
    list.add({"gradients", Class::gradients, Tier::device, Span::backward, bytes_for(accumulation, group.elements),
              "elements x bytes per element", counted(group.elements, accumulation),
              "stage_1_and_2.py: reduced at the last micro-batch, freed in step"});
    list.add({"gradients: this rank's part", Class::gradients, Tier::device, Span::update,
              bytes_for(policy.parameter, partition), "flat / N x bytes per element",
              counted(partition, policy.parameter), kStep});
  } else {
    list.add({"gradients: this rank's part", Class::gradients, Tier::device, Span::step,
              bytes_for(accumulation, partition), "flat / N x bytes per element", counted(partition, accumulation),
              kGradients});
  }
  if (accumulation != master || plan.setup.stage == 1) {
    list.add({"gradients: in the master's dtype", Class::gradients, Tier::device, Span::update,
              bytes_for(master, partition), "flat / N x bytes per element", counted(partition, master), kStep});
  }
  list.add({"optimizer states: master", Class::optimizer_states, Tier::device, Span::always,
            bytes_for(master, partition), "flat / N x bytes per element", counted(partition, master), kInit});
  list.add({"optimizer states: moments", Class::optimizer_states, Tier::device, Span::always,
            partition_moments(plan, group, partition),
            group.hidden_matrices ? "the whole tensors that a partition meets x bytes of a gradient"
                                  : "flat / N x bytes of each state",
            fmt::format("{} elements", with_commas(partition)),
            group.hidden_matrices ? "stage_1_and_2.py, get_flat_partition: momentum_buffer" : kMoments});
}

void add_zero(const DeepSpeedPlan& plan, const TensorGroup& group, TermList& list) {
  const std::uint64_t flat = deepspeed_flat_elements(group.elements, group.ranks);
  const std::uint64_t partition = flat / group.ranks;
  list.add({"parameters: flat", Class::parameters, Tier::device, Span::always, bytes_for(group.policy.parameter, flat),
            "elements padded to 2 N x bytes per element",
            fmt::format("{}, N = {}", counted(flat, group.policy.parameter), group.ranks), kInit});
  if (plan.options.offload_optimizer.device == OffloadDevice::none) {
    add_on_device(plan, group, partition, list);
  } else {
    add_offloaded(plan, group, partition, list);
  }
}

}  // namespace

void add_stages0_to_2(const DeepSpeedPlan& plan, TermList& list) {
  add_frozen(plan, list);
  bool buckets = false;
  for (const TensorGroup& group : trainable_groups(plan.runs, plan.setup)) {
    const DType accumulation = accumulation_dtype(plan, group.policy);
    const bool bf16_optimizer = group.policy.parameter == DType::bf16 && accumulation == DType::f32 &&
                                plan.options.offload_optimizer.device == OffloadDevice::none;
    if (plan.setup.stage == 1 && bf16_optimizer) {
      add_bf16_optimizer(plan, group, accumulation, list);
    } else if (plan.setup.stage == 0) {
      add_stage0(plan, group, list);
    } else {
      add_zero(plan, group, list);
      // All groups go through the same buckets.
      if (!buckets && !plan.catalog.count_only) add_buckets(plan, group, list);
      buckets = true;
    }
  }
}

}  // namespace shardplan
