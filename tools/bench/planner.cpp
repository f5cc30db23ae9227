#include <benchmark/benchmark.h>

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/presets.h"
#include "planner/step_plan.h"
#include "tools/bench/cases.h"
#include "tools/memcalc/fitting.h"
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

std::vector<std::string> words_in(const char* text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
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

// The best of more than 100,000 set-ups, the model in memory. Decided: sized, or known not to be among the plans.
void fit_space(benchmark::State& state, const char* words) {
  const memcalc::CommandLine line = memcalc::read_command_line(words_in(words));
  std::uint64_t decided = 0;
  for ([[maybe_unused]] auto _ : state) {
    const memcalc::Fit fit = memcalc::make_fit(line.plan, line.fit);
    decided = fit.decided;
    benchmark::DoNotOptimize(fit.plans.data());
  }
  state.counters["set_ups"] = static_cast<double>(decided);
  state.counters["set_ups_per_second"] =
      benchmark::Counter(static_cast<double>(decided), benchmark::Counter::kIsIterationInvariantRate);
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
  benchmark::RegisterBenchmark("fit_space/llama-3.1-70b", fit_space,
                               "fit llama-3.1-70b --gpus 512 --gpu h100-80gb --seq 8192 --global-batch 4096 "
                               "--profile megatron")
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("fit_space/deepseek-v3", fit_space,
                               "fit deepseek-v3 --gpus 2048 --gpu h100-80gb --seq 4096 --global-batch 8192 "
                               "--profile megatron")
      ->Unit(benchmark::kMillisecond);
}

}  // namespace shardplan::bench
