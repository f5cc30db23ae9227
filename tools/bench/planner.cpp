#include <benchmark/benchmark.h>

#include "planner/formats/presets.h"
#include "planner/step_plan.h"
#include "tools/bench/cases.h"

namespace shardplan::bench {
namespace {

void plan(benchmark::State& state, const char* preset, std::uint64_t world_size) {
  const Catalog catalog = require_preset_model(preset).catalog;
  Setup setup;
  setup.world_size = world_size;
  setup.stage = 3;
  for ([[maybe_unused]] auto _ : state) benchmark::DoNotOptimize(make_step_plan(catalog, setup));
}

}  // namespace

void register_planner() {
  benchmark::RegisterBenchmark("plan_7b", plan, "llama-2-7b", 64)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("plan_405b", plan, "llama-3.1-405b", 4096)->Unit(benchmark::kMicrosecond);
  benchmark::RegisterBenchmark("plan_deepseek_v3", plan, "deepseek-v3", 4096)->Unit(benchmark::kMicrosecond);
}

}  // namespace shardplan::bench
