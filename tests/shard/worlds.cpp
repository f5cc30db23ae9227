#include "tests/shard/worlds.h"

#include <algorithm>

#include "runtime/cpu_device.h"
#include "tests/shard/training_run.h"
#include "tests/support/run_ranks.h"

namespace shardplan::test {

Catalog state_catalog() {
  Catalog catalog = odd_catalog();
  CatalogBuilder builder("large", "tensors");
  builder.begin_unit("large");
  builder.add({.name = "large.weight", .shape = {3, kStateChunk - 7}});
  catalog.runs.push_back(builder.finish().runs.front());
  return catalog;
}

ZeroOptions state_options() {
  ZeroOptions options;
  options.groups = {{.match = "*bias", .values = {.weight_decay = 0.0}}, {.match = "*", .values = {}}};
  options.clip_norm = 0.5;
  options.initial_values = synthetic_values;
  options.loss_scaling = default_scaling(LossScaleRule::torch);
  options.loss_scaling.initial = 1024;
  options.loss_scaling.window = 2;
  return options;
}

ZeroOptions other_initial_values() {
  ZeroOptions options = state_options();
  options.initial_values = [](const TensorRange&, std::span<float> values) {
    std::fill(values.begin(), values.end(), 7.F);
  };
  return options;
}

Setup setup_of(const char* precision, std::uint64_t world, std::uint64_t replicas, int stage) {
  Setup setup;
  setup.policy = policy_named(precision);
  setup.world_size = world;
  setup.replicate = replicas;
  setup.stage = stage;
  setup.ema = true;
  setup.accumulation = 2;
  setup.cadence = Cadence::micro_batch;
  return setup;
}

std::vector<Setup> small_worlds(const char* precision) {
  std::vector<Setup> setups;
  for (int stage = 0; stage < 4; ++stage) {
    for (const std::uint64_t world : {1U, 2U, 3U}) setups.push_back(setup_of(precision, world, 1, stage));
    setups.push_back(setup_of(precision, 4, 2, stage));
  }
  return setups;
}

Script script_of(std::size_t steps) {
  Script script;
  script.micro_batches.assign(steps, 2);
  return script;
}

void with_world(const Setup& setup, const Catalog& catalog, const ZeroOptions& options, const Script& script,
                const std::function<void(const Rank&)>& body) {
  const StepPlan plan = make_step_plan(catalog, setup);
  CpuDevice cpu;
  run_ranks(static_cast<int>(setup.world_size), [&](Communicator& world) {
    const RankGroups groups(world, setup);
    ZeroOptimizer optimizer(catalog, plan, cpu, groups.communicators(), options);
    SyntheticClient client(script, setup, plan.layout.units, world.rank());
    body({optimizer, client, world, world.rank()});
  });
}

}  // namespace shardplan::test
