#include "planner/engines/megatron.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/text.h"
#include "planner/engines/layer_wise.h"
#include "planner/engines/megatron_fsdp.h"
#include "planner/engines/megatron_states.h"
#include "planner/engines/owned.h"
#include "planner/engines/pinned.h"

namespace shardplan {
namespace {

constexpr const char* kBuffer = "megatron/core/distributed/param_and_grad_buffer.py, _ParamAndGradBuffer";
constexpr const char* kOptimizer = "megatron/core/optimizer/distrib_optimizer.py, _build_model_and_main_param_groups";
constexpr const char* kWhole = "megatron/core/optimizer/optimizer.py, Float16OptimizerWithFloat16Params";
constexpr const char* kLayerWise = "megatron/core/optimizer/layer_wise_optimizer.py, LayerWiseDistributedOptimizer";

using Class = MemoryClass;

bool uses_fsdp(const Setup& setup, const MegatronOptions& options) {
  return options.use_megatron_fsdp || options.data_parallel_sharding_strategy || setup.stage >= 2;
}

MegatronSharding sharding_of(const Setup& setup, const MegatronOptions& options) {
  if (options.data_parallel_sharding_strategy) return *options.data_parallel_sharding_strategy;
  switch (setup.stage) {
    case 0:
      return options.use_megatron_fsdp ? MegatronSharding::optim_grads_params : MegatronSharding::no_shard;
    case 1:
      return MegatronSharding::optim;
    case 2:
      return MegatronSharding::optim_grads;
    default:
      return MegatronSharding::optim_grads_params;
  }
}

// The dtypes of moments.
Policy moment_policy(const Policy& policy, const MegatronOptions& options) {
  Policy result = policy;
  if (options.use_precision_aware_optimizer) {
    result.first_moment = options.exp_avg_dtype;
    result.second_moment = options.exp_avg_sq_dtype;
  }
  return result;
}

std::vector<std::uint64_t> parameters_of(const Setup& setup, const std::vector<OwnedRun>& runs,
                                         const TensorGroup& group) {
  std::vector<std::uint64_t> parameters;
  for_each_owned(runs, [&](const Owned& owned) {
    if (in_group(owned, group, setup)) parameters.push_back(owned.elements);
  });
  return parameters;
}

std::optional<std::uint64_t> bucket_elements(std::uint64_t ranks, const MegatronOptions& options) {
  if (!options.overlap_grad_reduce) return std::nullopt;
  return options.ddp_bucket_size.value_or(std::max<std::uint64_t>(40'000'000, checked_multiply(1'000'000, ranks)));
}

// Tensors of more than two dims are as many matrices: experts that one tensor holds.
std::vector<WholeMatrix> matrices_of(const Setup& setup, const std::vector<OwnedRun>& runs, const TensorGroup& group) {
  std::vector<WholeMatrix> matrices;
  for_each_owned(runs, [&](const Owned& owned) {
    if (!in_group(owned, group, setup) || owned.elements == 0) return;
    const Shape& shape = owned.tensor->shape;
    const WholeMatrix matrix{.rows = shape[shape.size() - 2], .columns = shape.back()};
    matrices.insert(matrices.end(), owned.elements / (matrix.rows * matrix.columns), matrix);
  });
  return matrices;
}

// Muon's matrices, whole on the rank that updates them.
void add_layer_wise(const Setup& setup, const std::vector<OwnedRun>& runs, const TensorGroup& group,
                    const MegatronOptions& options, TermList& list) {
  const LayerWiseLayout layout =
      layer_wise_layout(matrices_of(setup, runs, group), group.ranks, bucket_elements(group.ranks, options),
                        options.pad_buckets_for_high_nccl_busbw);
  const std::string inputs =
      fmt::format("{} elements of matrices in {} bucket{}, {} with padding", with_commas(layout.elements),
                  layout.buckets, layout.buckets == 1 ? "" : "s", with_commas(layout.padded_elements));
  const char* formula = "N x the fullest rank's part of each bucket, x bytes per element";
  list.add({"parameters: buffer of whole matrices", Class::parameters, Tier::device, Span::always,
            bytes_for(group.policy.parameter, layout.padded_elements), formula, inputs, kLayerWise});
  list.add({"gradients: main, of whole matrices", Class::gradients, Tier::device, Span::always,
            bytes_for(options.main_grads_dtype, layout.padded_elements), formula, inputs, kLayerWise});
  add_megatron_states({.master = megatron_master_bytes(group.policy, options, layout.most_elements),
                       .moments = flat_moment_bytes(setup, group.policy, layout.most_elements, true),
                       .formula = "whole matrices of the fullest rank x bytes per element",
                       .inputs = fmt::format("{} of {} elements, N = {}", with_commas(layout.most_elements),
                                             with_commas(layout.elements), group.ranks),
                       .source = kLayerWise},
                      options, list);
}

void add_group(const Setup& setup, const std::vector<OwnedRun>& runs, const TensorGroup& group, bool distributed,
               const MegatronOptions& options, TermList& list) {
  const MegatronBuffer buffer = megatron_buffer(parameters_of(setup, runs, group), group.ranks, distributed, options);
  const std::string experts = group.ranks == shard_count(setup) / options.num_distributed_optimizer_instances
                                  ? ""
                                  : fmt::format(" ({} ranks)", group.ranks);
  const std::string inputs =
      fmt::format("{} elements in {} bucket{}, {} with padding", with_commas(buffer.elements), buffer.buckets,
                  buffer.buckets == 1 ? "" : "s", with_commas(buffer.padded_elements));
  const char* formula =
      distributed ? "elements of the buffer, padded, x bytes per element" : "elements x bytes per element";
  list.add({"parameters: buffer" + experts, Class::parameters, Tier::device, Span::always,
            bytes_for(group.policy.parameter, buffer.padded_elements), formula, inputs, kBuffer});
  list.add({"gradients: main" + experts, Class::gradients, Tier::device, Span::always,
            bytes_for(options.main_grads_dtype, buffer.padded_elements), formula, inputs, kBuffer});
  const std::uint64_t updated = distributed ? buffer.padded_elements / group.ranks : buffer.padded_elements;
  if (options.main_grads_dtype != DType::f32 && !options.use_precision_aware_optimizer) {
    list.add({"gradients: fp32 copies" + experts, Class::gradients, Tier::device, Span::update,
              bytes_for(DType::f32, updated), "what is updated x 4 B, until the next step begins",
              fmt::format("{} elements", with_commas(updated)),
              "distrib_optimizer.py and optimizer.py, _copy_model_grads_to_main_grads"});
  }
  add_megatron_states({.master = megatron_master_bytes(group.policy, options, updated),
                       .moments = distributed ? megatron_shard_moments(setup, group, options, updated)
                                              : megatron_whole_moments(setup, runs, group, options),
                       .formula = distributed ? "padded elements / N x bytes per element" : formula,
                       .inputs = fmt::format("{} elements, N = {}", with_commas(updated), group.ranks),
                       .source = distributed ? kOptimizer : kWhole},
                      options, list);
}

void shard_over_instances(std::vector<OwnedRun>& runs, const MegatronOptions& options) {
  const std::uint64_t instances = options.num_distributed_optimizer_instances;
  for (OwnedRun& run : runs) {
    for (Owned& owned : run.tensors) {
      if (instances == 0 || owned.ranks % instances != 0) {
        throw ConfigError("--num-distributed-optimizer-instances", "",
                          fmt::format("{} does not divide the {} data ranks", instances, owned.ranks));
      }
      owned.ranks /= instances;
    }
  }
}

void require_runnable(const Setup& setup, const MegatronOptions& options, bool fsdp, bool distributed) {
  const auto require = [](bool condition, const char* flag, const char* problem) {
    if (!condition) throw ConfigError(flag, "", problem);
  };
  require(setup.optimizer != OptimizerKind::adafactor && setup.optimizer != OptimizerKind::adam8bit, "--optimizer",
          "megatron has no Adafactor and no 8-bit Adam: expected adamw, adam, sgd, sgd-momentum, lion or muon");
  if (setup.optimizer != OptimizerKind::muon) return;
  require(!fsdp, "--optimizer", "megatron runs muon without its FSDP: expected --zero 0 or 1");
  require(setup.policy.parameter != DType::f16, "--optimizer", "megatron runs muon in bf16 or fp32, not in fp16");
  require(!options.use_precision_aware_optimizer, "--use-precision-aware-optimizer", "is of adam, not of muon");
  require(!distributed || options.num_distributed_optimizer_instances == 1, "--num-distributed-optimizer-instances",
          "muon shares its matrices out among all data ranks: expected 1");
}

}  // namespace

Bytes megatron_master_bytes(const Policy& policy, const MegatronOptions& options, std::uint64_t count) {
  // In fp32 the parameter is its own master.
  if (policy.parameter == DType::f32 || policy.parameter == DType::f64) return Bytes{};
  if (!options.use_precision_aware_optimizer) return bytes_for(policy.master.value_or(DType::f32), count);
  const bool remainders =
      options.store_param_remainders && policy.parameter == DType::bf16 && options.main_params_dtype == DType::f32;
  return bytes_for(remainders ? DType::i16 : options.main_params_dtype, count);
}

Bytes megatron_shard_moments(const Setup& setup, const TensorGroup& group, const MegatronOptions& options,
                             std::uint64_t count) {
  return flat_moment_bytes(setup, moment_policy(group.policy, options), count, group.hidden_matrices);
}

Bytes megatron_whole_moments(const Setup& setup, const std::vector<OwnedRun>& runs, const TensorGroup& group,
                             const MegatronOptions& options) {
  return whole_moment_bytes(setup, runs, group, moment_policy(group.policy, options));
}

void add_megatron_states(const MegatronStates& states, const MegatronOptions& options, TermList& list) {
  const auto add = [&](const char* what, Bytes bytes) {
    const double fraction = options.optimizer_cpu_offload ? options.optimizer_offload_fraction : 0;
    const Bytes host{static_cast<std::uint64_t>(fraction * static_cast<double>(bytes.count()))};
    list.add({what, Class::optimizer_states, Tier::device, Span::always, bytes - host, states.formula, states.inputs,
              states.source});
    list.add({what, Class::optimizer_states, Tier::pinned, Span::always, host,
              fmt::format("{}, the offloaded fraction", states.formula), states.inputs,
              "megatron/core/optimizer/cpu_offloading/hybrid_optimizer.py, HybridDeviceOptimizer"});
  };
  add("optimizer states: master", states.master);
  add("optimizer states: moments", states.moments);
}

MegatronBuffer megatron_buffer(const std::vector<std::uint64_t>& parameters, std::uint64_t ranks, bool distributed,
                               const MegatronOptions& options) {
  constexpr std::uint64_t kParameterAlignment = 64;
  constexpr std::uint64_t kBucketAlignment = 128;
  constexpr std::uint64_t kBusAlignment = 65536;
  std::uint64_t multiple = std::lcm(ranks, kBucketAlignment);
  if (options.pad_buckets_for_high_nccl_busbw) multiple = std::lcm(multiple, kBusAlignment);
  const std::optional<std::uint64_t> bucket_size = bucket_elements(ranks, options);
  const auto bucket_end = [&](std::uint64_t end) { return distributed ? round_up(end, multiple) : end; };
  MegatronBuffer buffer;
  std::uint64_t bucket_start = 0;
  std::uint64_t end = 0;
  bool open = false;
  std::for_each(parameters.rbegin(), parameters.rend(), [&](std::uint64_t parameter) {
    const std::uint64_t start = distributed ? round_up(end, kParameterAlignment) : end;
    end = checked_add(start, parameter);
    buffer.elements = checked_add(buffer.elements, parameter);
    open = !bucket_size || end - bucket_start < *bucket_size;
    if (open) return;
    end = bucket_start = bucket_end(end);
    ++buffer.buckets;
  });
  if (open) {
    end = bucket_end(end);
    ++buffer.buckets;
  }
  buffer.padded_elements = end;
  return buffer;
}

EngineTerms megatron_terms(const Catalog& catalog, const Setup& setup, const MegatronOptions& options) {
  if (options.optimizer_offload_fraction < 0 || options.optimizer_offload_fraction > 1) {
    throw ConfigError("--optimizer-offload-fraction", "", "expected 0 to 1");
  }
  const bool distributed = options.use_distributed_optimizer.value_or(setup.stage == 1);
  require_runnable(setup, options, uses_fsdp(setup, options), distributed);
  std::vector<OwnedRun> runs = owned_tensors(catalog, setup);
  shard_over_instances(runs, options);
  EngineTerms terms;
  TermList list(terms.terms);
  const bool fsdp = uses_fsdp(setup, options) && !catalog.count_only;
  if (fsdp) {
    add_megatron_fsdp(setup, runs, options, sharding_of(setup, options), list);
  } else {
    list.add({"parameters: frozen", Class::parameters, Tier::device, Span::always,
              sum_bytes(runs,
                        [](const Owned& owned) {
                          return owned.tensor->trainable ? Bytes{} : bytes_for(owned.policy.parameter, owned.elements);
                        }),
              "elements x bytes per element", "in no buffer", kBuffer});
  }
  for (const TensorGroup& group : fsdp ? std::vector<TensorGroup>() : trainable_groups(runs, setup)) {
    if (distributed && group.hidden_matrices) {
      add_layer_wise(setup, runs, group, options, list);
    } else {
      add_group(setup, runs, group, distributed, options, list);
    }
  }
  Setup sent = setup;
  sent.policy.gradient = sent.policy.wire = options.main_grads_dtype;
  if (!fsdp && setup.stage < 2) sent.stage = distributed ? 1 : 0;
  terms.traffic = textbook_traffic(catalog, sent);
  if (setup.accumulation > 1) {
    terms.notes.emplace_back("megatron adds micro-batches up in the main gradients: no accumulator beside them");
  }
  terms.notes.emplace_back("activations, transformer_engine's workspaces and logits are not among these terms");
  return terms;
}

}  // namespace shardplan
