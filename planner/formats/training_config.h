// What a training configuration file says, in our words: ds_config.json of DeepSpeed (ds_config.h), accelerate's YAML and
// Megatron-LM's arguments are read onto the same struct.
//
// A member is empty where the file says nothing and leaves the choice to whoever launches the run ("auto"). What a file
// decides by a default of its format is said: no "bf16" and no "fp16" in ds_config.json is fp32.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "planner/engines/options.h"
#include "planner/parallelism.h"
#include "planner/policy.h"
#include "planner/report.h"
#include "planner/setup.h"

namespace shardplan {

// A value and the key that said it, for errors: "zero_optimization.stage", "fsdp_config.fsdp_version",
// "--micro-batch-size".
template <typename T>
struct Said {
  T value{};
  std::string key;
  bool operator==(const Said&) const = default;
};
template <typename T>
using Saying = std::optional<Said<T>>;
template <typename T>
Said<T> said(T value, std::string key) {
  return {std::move(value), std::move(key)};
}

struct TrainingConfig {
  std::string source;  // the file

  Saying<Engine> engine;
  Saying<int> stage;

  // The name of a policy, and dtypes that differ from it.
  Saying<std::string> precision;
  struct DTypes {
    Saying<DType> parameter;
    Saying<DType> gradient;
    Saying<DType> gradient_accumulator;
    Saying<DType> master;
    Saying<DType> moments;
    Saying<DType> compute;
    Saying<DType> wire;
    bool operator==(const DTypes&) const = default;
  } dtypes;

  Saying<OptimizerKind> optimizer;

  // Sequences of one rank's micro-batch, of a step over all ranks, micro-batches per step, tokens of a sequence.
  Saying<std::uint64_t> micro_batch;
  Saying<std::uint64_t> global_batch;
  Saying<std::uint64_t> accumulation;
  Saying<std::uint64_t> sequence;

  // All ranks, and those of a node.
  Saying<std::uint64_t> world_size;
  Saying<std::uint64_t> gpus_per_node;
  // Hybrid sharding, said in one of three ways: groups that replicate; ranks of a group that shards; each node a group.
  Saying<std::uint64_t> replicate;
  Saying<std::uint64_t> shard;
  Saying<bool> shard_in_node;

  Saying<std::uint64_t> tensor;
  Saying<std::uint64_t> pipeline;
  Saying<std::uint64_t> context;
  Saying<std::uint64_t> expert;
  Saying<std::uint64_t> expert_tensor;
  Saying<std::uint64_t> virtual_stages;
  Saying<bool> sequence_parallel;
  Saying<PipelineSchedule> schedule;
  Saying<std::uint64_t> first_stage_layers;
  Saying<std::uint64_t> last_stage_layers;
  Saying<bool> embedding_is_a_layer;
  Saying<bool> loss_is_a_layer;
  Saying<std::vector<std::uint64_t>> piece_layers;
  Saying<std::uint64_t> vocabulary_multiple;

  Saying<Recompute> recompute;

  // The engine's own options, offload among them, whole: what the file does not say is the format's default.
  std::optional<DeepSpeedOptions> deepspeed;
  std::optional<Fsdp2Options> fsdp2;
  std::optional<MegatronOptions> megatron;

  // Keys of what the engine's options say that a flag says too: {"--offload", "zero_optimization.offload_param"}.
  std::map<std::string, std::string> engine_keys;

  // What is in the file and not used, for the report.
  std::vector<std::string> notes;

  bool operator==(const TrainingConfig&) const = default;
};

// What becomes of a step's batch: micro x accumulation x data_parallel = global.
struct Batch {
  std::uint64_t micro = 1;
  std::uint64_t accumulation = 1;
  bool operator==(const Batch&) const = default;
};

// The arithmetic of DeepSpeed 0.19.6 (runtime/config.py, _set_batch_related_parameters and _batch_assertion): what is
// missing follows from the others by integer division, and the product must then hold exactly. With neither global nor
// micro a micro-batch of 1. Throws ConfigError, with `config`'s file and key, where the product does not hold or is 0.
//   {global, micro} -> accumulation = global / micro / ranks        {global} -> accumulation 1, micro = global / ranks
//   {global, accumulation} -> micro = global / ranks / accumulation {micro}  -> accumulation 1
Batch resolve_batch(const TrainingConfig& config, std::uint64_t data_parallel);

}  // namespace shardplan
