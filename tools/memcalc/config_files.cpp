#include "tools/memcalc/config_files.h"

#include <fmt/format.h>

#include <algorithm>

#include "planner/formats/accelerate_config.h"
#include "planner/formats/ds_config.h"
#include "planner/formats/megatron_args.h"

namespace shardplan::memcalc {
namespace {

class Application {
 public:
  Application(const TrainingConfig& config, const std::set<std::string>& given, PlanOptions& options)
      : config_(config), given_(given), options_(options) {}

  bool given(const std::string& flag) const { return given_.contains(flag); }

  // What the file says, where no flag does.
  template <typename From, typename To>
  void take(const std::string& flag, const Saying<From>& said, To& value) {
    if (!said || given(flag)) return;
    value = said->value;
    remember(flag, said->key);
  }
  void remember(const std::string& flag, const std::string& key) { options_.origins[flag] = {config_.source, key}; }

  void setup() {
    Setup& setup = options_.setup;
    take("--engine", config_.engine, options_.engine);
    take("--zero", config_.stage, setup.stage);
    take("--optimizer", config_.optimizer, setup.optimizer);
    client(setup);
    take("--gpus", config_.world_size, setup.world_size);
    take("--gpus-per-node", config_.gpus_per_node, options_.gpus_per_node);
    take("--seq", config_.sequence, options_.sequence);
    take("--vocabulary-multiple", config_.vocabulary_multiple, options_.vocabulary_multiple);
    parallelism(setup.parallel);
    hybrid(setup);
  }

  void dtypes(PolicyFlags& policy) {
    if (given("--precision")) return;
    take("--precision", config_.precision, policy.precision);
    const TrainingConfig::DTypes& said = config_.dtypes;
    const auto dtype = [&](const char* flag, const Saying<DType>& type) {
      if (!type || given(flag)) return;
      policy.overrides[flag] = name(type->value);
      remember(flag, type->key);
    };
    dtype("--param-dtype", said.parameter);
    dtype("--grad-dtype", said.gradient);
    dtype("--grad-accum-dtype", said.gradient_accumulator);
    dtype("--master-dtype", said.master);
    dtype("--moment-dtype", said.moments);
    dtype("--compute-dtype", said.compute);
    dtype("--wire-dtype", said.wire);
  }

  void engine_options() {
    EngineOptions& engine = options_.engine_options;
    const DeepSpeedOptions flags = engine.deepspeed;
    if (options_.engine == Engine::deepspeed && config_.deepspeed) {
      engine.deepspeed = *config_.deepspeed;
      if (given("--hpz")) engine.deepspeed.zero_hpz_partition_size = flags.zero_hpz_partition_size;
      if (given("--mics")) engine.deepspeed.mics_shard_size = flags.mics_shard_size;
      if (given("--precision")) engine.deepspeed.grad_accum_dtype.reset();
    }
    if (options_.engine == Engine::fsdp2 && config_.fsdp2) engine.fsdp2 = *config_.fsdp2;
    if (options_.engine == Engine::megatron && config_.megatron) engine.megatron = *config_.megatron;
    if (given("--offload")) forget_offload(engine);
    for (const auto& [flag, key] : config_.engine_keys) {
      if (!given(flag)) remember(flag, key);
    }
    if (config_.engine && config_.engine->value != options_.engine) {
      options_.notes.push_back(fmt::format("{}: what it says of the buffers and the offload of engine {} is not used",
                                           config_.source, name(config_.engine->value)));
    }
  }

 private:
  void recompute(Setup& setup) {
    if (!config_.recompute || given("--recompute")) return;
    take("--recompute", config_.recompute, setup.recompute);
    options_.client.recompute = setup.recompute == Recompute::full ? RecomputeKind::full : RecomputeKind::none;
  }

  // Megatron's arguments say how it computes, too.
  void client(Setup& setup) {
    if (!options_.megatron) return recompute(setup);
    const ClientSetup& said = options_.megatron->client;
    ClientSetup& client = options_.client;
    client.megatron = said.megatron;
    client.expert_load.padded = said.expert_load.padded;
    if (!given("--moe-capacity-factor")) client.expert_load.capacity_factor = said.expert_load.capacity_factor;
    if (!given("--loss")) client.loss = said.loss;
    if (!given("--attention")) client.attention = said.attention;
    if (given("--recompute")) return;
    client.recompute = said.recompute;
    client.recompute_every = said.recompute_every;
    setup.recompute = said.recompute == RecomputeKind::full ? Recompute::full : Recompute::none;
  }

  void parallelism(Parallelism& parallel) {
    take("--tp", config_.tensor, parallel.tensor);
    take("--pp", config_.pipeline, parallel.pipeline);
    take("--cp", config_.context, parallel.context);
    take("--ep", config_.expert, parallel.expert);
    take("--etp", config_.expert_tensor, parallel.expert_tensor);
    take("--virtual-stages", config_.virtual_stages, parallel.virtual_stages);
    take("--sequence-parallel", config_.sequence_parallel, parallel.sequence_parallel);
    take("--schedule", config_.schedule, parallel.schedule);
    take("--first-stage-layers", config_.first_stage_layers, parallel.first_stage_layers);
    take("--last-stage-layers", config_.last_stage_layers, parallel.last_stage_layers);
    take("--embedding-is-a-layer", config_.embedding_is_a_layer, parallel.embedding_is_a_layer);
    take("--loss-is-a-layer", config_.loss_is_a_layer, parallel.loss_is_a_layer);
    take("--pipeline-model-parallel-layout", config_.piece_layers, parallel.piece_layers);
  }

  // Ranks of the data axis over those of a group that shards.
  void hybrid(Setup& setup) {
    take("--replicate", config_.replicate, setup.replicate);
    if (given("--replicate")) return;
    const Parallelism& p = setup.parallel;
    const std::uint64_t tensor = std::max<std::uint64_t>(1, p.tensor);
    const std::uint64_t data = setup.world_size / tensor / std::max<std::uint64_t>(1, p.pipeline);
    if (config_.shard) share_out(setup, data, config_.shard->value, config_.shard->key);
    if (config_.shard_in_node && config_.shard_in_node->value) {
      const std::uint64_t in_node = std::max<std::uint64_t>(1, options_.node_gpus() / tensor);
      share_out(setup, data, std::min(in_node, data), config_.shard_in_node->key);
    }
  }

  void share_out(Setup& setup, std::uint64_t data, std::uint64_t shard, const std::string& key) {
    if (shard == 0 || data % shard != 0) {
      throw ConfigError(config_.source, key,
                        fmt::format("groups of {} ranks do not share out the {} on the data axis", shard, data));
    }
    setup.replicate = data / shard;
    remember("--replicate", key);
  }

  static void forget_offload(EngineOptions& engine) {
    engine.deepspeed.offload_optimizer.device = OffloadDevice::none;
    engine.deepspeed.offload_param.device = OffloadDevice::none;
    engine.fsdp2.offload = false;
    engine.megatron.optimizer_cpu_offload = false;
  }

  const TrainingConfig& config_;
  const std::set<std::string>& given_;
  PlanOptions& options_;
};

}  // namespace

std::optional<TrainingConfig> read_config_file(const ConfigFlags& flags, PlanOptions& options) {
  const std::pair<const char*, const std::vector<std::string>*> files[] = {
      {"--ds-config", &flags.ds_config},
      {"--accelerate-config", &flags.accelerate_config},
      {"--megatron-args", &flags.megatron_args}};
  const char* first = nullptr;
  for (const auto& [flag, paths] : files) {
    if (paths->size() > 1) throw ConfigError(flag, "", "is given twice: expected one file");
    if (paths->empty()) continue;
    if (first != nullptr)
      throw ConfigError(flag, "", fmt::format("and {} exclude each other: expected one file", first));
    first = flag;
  }
  if (!flags.ds_config.empty()) return ds_config_in_file(flags.ds_config.front());
  if (!flags.accelerate_config.empty()) return accelerate_config_in_file(flags.accelerate_config.front());
  if (!flags.megatron_args.empty()) {
    options.megatron = megatron_args_in_file(flags.megatron_args.front());
    return options.megatron->config;
  }
  return std::nullopt;
}

void apply_config(const TrainingConfig& config, const std::set<std::string>& given, PlanOptions& options,
                  PolicyFlags& policy) {
  Application application(config, given, options);
  application.setup();
  application.dtypes(policy);
  application.engine_options();
  options.notes.insert(options.notes.begin(), config.notes.begin(), config.notes.end());
}

void apply_batch(const TrainingConfig& config, const std::set<std::string>& given, PlanOptions& options) {
  TrainingConfig said = config;
  bool contradicts = false;
  const auto put = [&](const char* flag, std::uint64_t value, Saying<std::uint64_t>& member) {
    if (!given.contains(flag)) {
      if (member) options.origins[flag] = {config.source, member->key};
      return;
    }
    contradicts = contradicts || (member && member->value != value);
    member = shardplan::said(value, flag);
  };
  put("--micro-batch", options.micro_batch, said.micro_batch);
  put("--grad-accum", options.setup.accumulation, said.accumulation);
  const std::uint64_t ranks = data_parallel(options.setup);
  if (contradicts && said.global_batch && said.micro_batch && said.accumulation) {
    options.notes.push_back(
        fmt::format("{}: {} is not used, since flags say otherwise", config.source, said.global_batch->key));
    said.global_batch.reset();
  }
  const Batch batch = resolve_batch(said, ranks);
  options.micro_batch = batch.micro;
  options.setup.accumulation = batch.accumulation;
}

ConfigError told_of_file(const ConfigError& error, const PlanOptions& options) {
  const auto origin = options.origins.find(error.source());
  if (origin == options.origins.end()) return error;
  return {origin->second.file, origin->second.key, error.problem()};
}

int exit_status_of(const ConfigError& error) {
  return error.source().starts_with("--") ? 2 : 3;
}

}  // namespace shardplan::memcalc
