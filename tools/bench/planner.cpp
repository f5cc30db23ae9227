#include <benchmark/benchmark.h>

#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/presets.h"
#include "planner/step_plan.h"
#include "tools/bench/cases.h"
#include "tools/simulate/simulation.h"

namespace shardplan::bench {
namespace {

void plan(benchmark::State& state, const char* preset, std::uint64_t world_size) {
  const Catalog catalog = require_preset_model(preset).catalog;
  Setup setup;
  setup.world_size = world_size;
  setup.stage = 3;
  for ([[maybe_unused]] auto _ : state) benchmark::DoNotOptimize(make_step_plan(catalog, setup));
}

// One training step of so many virtual ranks, the making of their optimizers included.
void simulate_step(benchmark::State& state, const char* preset) {
  const Model model = require_preset_model(preset);
  Setup setup;
  setup.world_size = static_cast<std::uint64_t>(state.range(0));
  setup.stage = 3;
  const StepPlan plan = make_step_plan(model.catalog, setup);
  const SimulationOptions options{.cluster = require_cluster(std::string(kDefaultCluster), gpu_table({})),
                                  .work = {.tokens = 4096, .sequence = 4096}};
  for ([[maybe_unused]] auto _ : state) benchmark::DoNotOptimize(simulate(model, plan, options));
  state.counters["ranks_per_second"] =
      benchmark::Counter(static_cast<double>(setup.world_size), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace

void register_planner() {
  benchmark::RegisterBenchmark("plan_7b", plan, "llama-2-7b", 64)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("plan_405b", plan, "llama-3.1-405b", 4096)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("simulate_step", simulate_step, "llama-2-7b")
      ->Unit(benchmark::kMillisecond)
      ->RangeMultiplier(4)
      ->Range(16, 4096);
  benchmark::RegisterBenchmark("plan_deepseek_v3", plan, "deepseek-v3", 4096)->Unit(benchmark::kMicrosecond);
}

}  // namespace shardplan::bench
