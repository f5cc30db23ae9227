#include "planner/engines/deepspeed.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "planner/engines/deepspeed_stages.h"

namespace shardplan {
namespace {

void require(bool condition, const char* source, const char* key, const std::string& problem) {
  if (!condition) throw ConfigError(source, key, problem);
}

void check(const Setup& setup, const DeepSpeedOptions& options) {
  const bool offloads = options.offload_optimizer.device != OffloadDevice::none;
  const bool offloads_parameters = options.offload_param.device != OffloadDevice::none;
  require(setup.stage == 3 || !offloads_parameters, "--offload", "",
          fmt::format("parameters can be offloaded at stage 3 only, not at stage {}", setup.stage));
  // runtime/pipe/engine.py: "ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism".
  require(setup.stage < 2 || setup.parallel.pipeline == 1, "--zero", "",
          fmt::format("DeepSpeed runs pipelines at stages 0 and 1, not at stage {}", setup.stage));
  require(setup.stage > 0 || !offloads, "--offload", "", "stage 0 offloads nothing: expected --zero 1, 2 or 3");
  require(setup.stage == 3 || options.offload_optimizer.device != OffloadDevice::nvme, "--offload", "",
          fmt::format("optimizer states can be on nvme at stage 3 only, not at stage {}", setup.stage));
  require(setup.stage == 3 || options.zero_hpz_partition_size == 1, "--hpz", "",
          fmt::format("a secondary partition needs stage 3, not {}", setup.stage));
  require(options.zero_hpz_partition_size > 0 && setup.world_size % options.zero_hpz_partition_size == 0, "--hpz", "",
          fmt::format("{} does not divide the {} ranks", options.zero_hpz_partition_size, setup.world_size));
  const std::int64_t mics = options.mics_shard_size;
  require(mics == -1 || setup.stage == 3, "--mics", "", fmt::format("needs stage 3, not {}", setup.stage));
  require(mics == -1 || (mics > 0 && setup.world_size % static_cast<std::uint64_t>(mics) == 0), "--mics", "",
          fmt::format("{} does not divide the {} ranks", mics, setup.world_size));
  require(mics == -1 || setup.replicate == 1, "--mics", "", "excludes --replicate, which says the same");
  require(options.offload_optimizer.ratio >= 0 && options.offload_optimizer.ratio <= 1, "offload_optimizer", "ratio",
          "expected 0 to 1");
  require(options.sub_group_size > 0, "zero_optimization", "sub_group_size", "expected 1 or more");
  const bool quantized = options.zero_quantized_nontrainable_weights;
  require(!quantized || !offloads_parameters || !options.offload_param.pin_memory,
          "zero_quantized_nontrainable_weights", "",
          "what is quantised is made on the GPU and cannot be pinned: expected offload_param.pin_memory false");
}

void check_dtypes(const Setup& setup, const DeepSpeedOptions& options) {
  const Policy& policy = setup.policy;
  // engine.py, _do_optimizer_sanity_check: "unsupported mix".
  const DType accumulation = options.grad_accum_dtype.value_or(policy.gradient);
  require(setup.stage > 0 || accumulation == policy.parameter, "--grad-dtype", "",
          fmt::format("stage 0 keeps gradients in the parameters' dtype: expected {}, found {}", name(policy.parameter),
                      name(accumulation)));
  // base_optimizer.py, _configure_master_weights.
  const DType master = policy.master.value_or(policy.parameter);
  const bool narrow = setup.stage > 0 && policy.parameter != DType::f32 && master == policy.parameter;
  const bool on_gpu = policy.parameter == DType::bf16 && policy.first_moment == DType::bf16;
  require(!narrow || on_gpu || options.offload_optimizer.device != OffloadDevice::none, "--offload", "",
          fmt::format("masters in {} with moments in {} are CPU Adam's: expected optimizer=cpu", name(master),
                      name(policy.first_moment)));
}

void check_optimizer(const Setup& setup, const DeepSpeedOptions& options) {
  const std::string_view optimizer = states_of(setup.optimizer).name;
  const bool offloads = options.offload_optimizer.device != OffloadDevice::none;
  const bool untested = setup.optimizer == OptimizerKind::adafactor || setup.optimizer == OptimizerKind::adam8bit;
  require(!untested || !offloads, "--offload", "",
          fmt::format("deepspeed offloads its own CPU optimizers, not {}: expected adamw, adam or lion", optimizer));
  if (setup.optimizer != OptimizerKind::muon) return;
  const bool bf16_optimizer = setup.stage == 1 && setup.policy.parameter == DType::bf16 &&
                              options.grad_accum_dtype.value_or(setup.policy.gradient) == DType::f32 && !offloads;
  require(setup.stage > 0 && !bf16_optimizer, "--optimizer", "",
          "deepspeed orthogonalises muon's updates in ZeRO's own optimizers only: expected --zero 1, 2 or 3, and not "
          "stage 1 with fp32 gradients of bf16 parameters");
  require(setup.stage == 3 || !offloads, "--offload", "",
          "deepspeed updates no momentum of muon where stages 1 and 2 offload");
  require(setup.stage < 3 || !options.reduce_scatter, "zero_optimization", "reduce_scatter",
          "muon at stage 3 needs \"reduce_scatter\": false (stage3.py)");
}

// MiCS and replicas both shard over fewer ranks.
Setup sharding(const Setup& setup, const DeepSpeedOptions& options) {
  Setup result = setup;
  if (options.mics_shard_size > 0) {
    result.replicate = setup.world_size / static_cast<std::uint64_t>(options.mics_shard_size);
  }
  return result;
}

std::optional<Bytes> initialization_peak(const DeepSpeedPlan& plan, const EngineTerms& terms, const Setup& setup,
                                         const EngineOptions& options) {
  const std::uint64_t ranks = std::min(options.gpus_per_node, setup.world_size);
  const Bytes host =
      std::max(held_at(terms, Span::update, Tier::pinned) + held_at(terms, Span::update, Tier::pageable),
               held_at(terms, Span::backward, Tier::pinned) + held_at(terms, Span::backward, Tier::pageable));
  Bytes built;
  if (!(setup.stage == 3 && options.deepspeed.zero_init)) {
    built = sum_bytes(plan.runs, [&](const Owned& owned) {
      return bytes_for(owned.tensor->dtype.value_or(options.deepspeed.load_dtype), owned.elements);
    });
  }
  return ranks * std::max(host, built);
}

Traffic traffic_of(const Catalog& catalog, const Setup& setup, const DeepSpeedOptions& options) {
  Traffic traffic = textbook_traffic(catalog, setup);
  // Gradients are all-reduced in buckets, though only a part is kept: stage_1_and_2.py, average_tensor with
  // use_multi_rank_bucket_allreduce.
  const bool reduced_to_owner = options.reduce_scatter && !options.use_multi_rank_bucket_allreduce;
  if ((setup.stage == 1 || setup.stage == 2) && !reduced_to_owner) {
    traffic.reduce_gradients = 2 * traffic.reduce_gradients;
  }
  return traffic;
}

// pipelined_optimizer_swapper.py, _swap_in_optimizer_state: the master, its states and the gradient of a sub-group are in
// buffers at once; reading ahead and writing behind hold as many again.
void note_swap_buffers(const DeepSpeedPlan& plan, std::vector<std::string>& notes) {
  const DeepSpeedOptions::OffloadOptimizer& offload = plan.options.offload_optimizer;
  if (offload.device != OffloadDevice::nvme || !(offload.pipeline_read || offload.pipeline_write)) return;
  const OptimizerStates& states = states_of(plan.setup.optimizer);
  const std::uint64_t each = 2U + (states.first_moment ? 1U : 0U) + (states.second_moment ? 1U : 0U);
  const std::uint64_t needed = each * (1U + (offload.pipeline_read ? 1U : 0U) + (offload.pipeline_write ? 1U : 0U));
  if (offload.buffer_count >= needed || sub_groups(plan.runs, plan.options).size() < 2) return;
  notes.push_back(
      fmt::format("deepspeed runs out of swap buffers: with pipeline_read and pipeline_write as they are, "
                  "offload_optimizer.buffer_count must be {}, not {}",
                  needed, offload.buffer_count));
}

}  // namespace

std::uint64_t deepspeed_flat_elements(std::uint64_t elements, std::uint64_t ranks) {
  return round_up(elements, checked_multiply(2, ranks));
}

std::uint64_t deepspeed_shard_elements(std::uint64_t elements, std::uint64_t ranks) {
  return divide_up(elements, ranks);
}

PersistentTensors deepspeed_persistent(const Catalog& catalog, const Setup& setup, const DeepSpeedOptions& options) {
  return persistent_tensors(owned_tensors(catalog, sharding(setup, options)), options);
}

std::vector<std::uint64_t> deepspeed_sub_groups(const Catalog& catalog, const Setup& setup,
                                                const DeepSpeedOptions& options) {
  return sub_groups(owned_tensors(catalog, sharding(setup, options)), options);
}

void settle_deepspeed(Setup& setup, DeepSpeedOptions& options) {
  Policy& policy = setup.policy;
  const DType accumulation = options.grad_accum_dtype.value_or(policy.gradient);
  policy.gradient = accumulation;
  policy.gradient_accumulator = accumulation;
  options.grad_accum_dtype.reset();
  if (accumulation != policy.parameter) options.grad_accum_dtype = accumulation;
  if (options.communication_data_type == policy.parameter) options.communication_data_type.reset();
  policy.wire = setup.parallel.context > 1 ? options.seq_parallel_communication_data_type
                                           : options.communication_data_type.value_or(policy.parameter);
}

DType accumulation_dtype(const DeepSpeedPlan& plan, const Policy& policy) {
  return plan.options.grad_accum_dtype.value_or(policy.gradient);
}

DType wire_dtype(const DeepSpeedPlan& plan) {
  if (plan.setup.parallel.context > 1) return plan.options.seq_parallel_communication_data_type;
  return plan.options.communication_data_type.value_or(plan.setup.policy.parameter);
}

DType master_dtype(const Policy& policy) {
  return policy.master.value_or(policy.parameter);
}

EngineTerms deepspeed_terms(const Catalog& catalog, const Setup& setup, const EngineOptions& options) {
  check(setup, options.deepspeed);
  check_optimizer(setup, options.deepspeed);
  check_dtypes(setup, options.deepspeed);
  const Setup sharded = sharding(setup, options.deepspeed);
  const DeepSpeedPlan plan{.catalog = catalog,
                           .setup = sharded,
                           .options = options.deepspeed,
                           .runs = owned_tensors(catalog, sharded),
                           .gpus_per_node = options.gpus_per_node};
  EngineTerms terms;
  TermList list(terms.terms);
  if (setup.stage == 3) {
    add_stage3(plan, list);
  } else {
    add_stages0_to_2(plan, list);
  }
  terms.initialization_peak = initialization_peak(plan, terms, setup, options);
  terms.traffic = traffic_of(catalog, sharded, options.deepspeed);
  if (setup.accumulation > 1 && !options.deepspeed.grad_accum_dtype) {
    terms.notes.push_back(
        fmt::format("deepspeed adds micro-batches up in the gradient's dtype ({}) unless data_types "
                    "says otherwise",
                    name(setup.policy.gradient)));
  }
  if (setup.stage > 0 && (setup.optimizer == OptimizerKind::adafactor || setup.optimizer == OptimizerKind::adam8bit)) {
    terms.notes.push_back(
        fmt::format("deepspeed runs {} with \"zero_allow_untested_optimizer\": true, on flat partitions{}",
                    states_of(setup.optimizer).name,
                    setup.optimizer == OptimizerKind::adafactor ? ", which leave nothing to factor" : ""));
  }
  note_swap_buffers(plan, terms.notes);
  if (options.deepspeed.zeropp_loco) {
    terms.notes.emplace_back("deepspeed has LoCo up to version 0.19.6; 0.19.8 is without");
  }
  if (options.deepspeed.mics_shard_size > 0) {
    terms.notes.emplace_back("deepspeed has MiCS up to version 0.19.6; 0.19.8 is without");
  }
  terms.notes.push_back(fmt::format("host memory is per rank; its peak at the start is per node of {} GPUs",
                                    std::min(options.gpus_per_node, setup.world_size)));
  return terms;
}

}  // namespace shardplan
