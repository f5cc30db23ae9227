#include "shard/kernels/arrays.h"
#include "tools/bench/cases.h"
#include "tools/bench/limit.h"

namespace shardplan::bench {
namespace {

void grad_norm(benchmark::State& state, DType dtype) {
  const auto elements = static_cast<std::size_t>(state.range(0));
  const std::size_t width = bytes_for(dtype, 1).count();
  ArrayMemory memory(ArrayMemory::room(elements * width, 1));
  auto* const gradient = memory.take<std::byte>(elements * width);
  for (std::size_t i = 0; i < elements; ++i) {
    const float value = static_cast<float>(i % 101) * 0.01F - 0.5F;
    cast({dtype, gradient + i * width, 1}, std::span(&value, 1));
  }

  Team team(static_cast<int>(state.range(1)));
  const auto read = [&](int thread) {
    const Part part = part_of(elements, thread, team.size());
    const auto* words = reinterpret_cast<const std::uint32_t*>(gradient + part.first * width);
    benchmark::DoNotOptimize(limit_kernels().read(words, part.count * width / sizeof(std::uint32_t)));
  };
  const auto norm = [&](int thread) {
    const Part part = part_of(elements, thread, team.size());
    benchmark::DoNotOptimize(sum_of_squares({dtype, gradient + part.first * width, part.count}));
  };
  compare(
      state, "ratio_to_read_limit", elements, [&] { return team.seconds(read); }, [&] { return team.seconds(norm); });
}

}  // namespace

void register_norm() {
  const std::pair<const char*, DType> cases[] = {{"grad_norm", DType::f32}, {"grad_norm_bf16", DType::bf16}};
  for (const auto& [name, dtype] : cases) {
    benchmark::RegisterBenchmark(name, [dtype = dtype](benchmark::State& state) { grad_norm(state, dtype); })
        ->ArgNames({"elements", "threads"})
        ->ArgsProduct({{100'000'000}, {1, 2}})
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond)
        ->Iterations(kPairs);
  }
}

}  // namespace shardplan::bench
