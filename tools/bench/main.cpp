// shardplan-bench: how fast the library is, as ratios to what the machine allows in the same run.
//
//   shardplan-bench [--benchmark_filter=REGEX] [--benchmark_format=json]      (Google Benchmark's flags)
#include <benchmark/benchmark.h>

#include "tools/bench/cases.h"
#include "tools/bench/collectives.h"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  shardplan::bench::register_adamw();
  shardplan::bench::register_norm();
  shardplan::bench::register_offload();
  shardplan::bench::register_checkpoints();
  shardplan::bench::register_planner();
  shardplan::bench::register_collectives();
  shardplan::bench::register_gpu();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
