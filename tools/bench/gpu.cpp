#include <chrono>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "shard/cuda_backend.h"
#include "tools/bench/cases.h"
#include "tools/bench/limit.h"

namespace shardplan::bench {
namespace {

constexpr int kRepetitions = 20;  // of what is timed, so that launching does not count

// The first GPU. `Memory` is zeroed, which is as good as any other number: no kernel here branches on values.
struct Gpu {
  const CudaBackend* cuda;
  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> stream;

  template <typename Work>
  double seconds(const Work& work) const {
    stream->synchronize();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRepetitions; ++i) work();
    stream->synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kRepetitions;
  }
};

Gpu first_gpu(const CudaBackend& cuda) {
  auto device = cuda.make_device(0);
  auto stream = device->make_stream();
  return {&cuda, std::move(device), std::move(stream)};
}

// The limit: a copy that reads and writes as many bytes in all.
void compare_with_copy(benchmark::State& state, const Gpu& gpu, std::size_t elements, Bytes touched,
                       const std::function<void()>& work) {
  const Bytes half{touched.count() / 2};
  const auto memory = gpu.device->allocate({.bytes = 2 * half});
  std::byte* const from = memory->data();
  compare(
      state, "ratio_to_copy", elements,
      [&] { return gpu.seconds([&] { gpu.stream->copy(from + half.count(), from, half); }); },
      [&] { return gpu.seconds(work); });
}

void adamw(benchmark::State& state, const CudaBackend& cuda, DType narrow) {
  const Gpu gpu = first_gpu(cuda);
  const auto elements = static_cast<std::size_t>(state.range(0));
  std::vector<std::unique_ptr<Memory>> memories;
  const auto array = [&](DType dtype) {
    memories.push_back(gpu.device->allocate({.bytes = bytes_for(dtype, elements)}));
    return Elements(dtype, memories.back()->data(), elements);
  };
  UpdateArrays arrays;
  arrays.parameter = array(narrow);
  arrays.gradient = array(narrow);
  arrays.first_moment = array(DType::f32);
  arrays.second_moment = array(DType::f32);
  if (narrow != DType::f32) {
    arrays.master = {reinterpret_cast<float*>(array(DType::f32).data), elements};
  }
  compare_with_copy(state, gpu, elements, touched_by_update(arrays),
                    [&] { cuda.kernels().update(*gpu.stream, {.kind = OptimizerKind::adamw, .step = 100}, arrays); });
}

void narrowing(benchmark::State& state, const CudaBackend& cuda) {
  const Gpu gpu = first_gpu(cuda);
  const auto elements = static_cast<std::size_t>(state.range(0));
  const auto from_memory = gpu.device->allocate({.bytes = bytes_for(DType::f32, elements)});
  const auto to_memory = gpu.device->allocate({.bytes = bytes_for(DType::bf16, elements)});
  const Elements from(DType::f32, from_memory->data(), elements);
  const Elements to(DType::bf16, to_memory->data(), elements);
  compare_with_copy(state, gpu, elements, touched_by_cast(to, from),
                    [&] { cuda.kernels().cast(*gpu.stream, to, from); });
}

void norm(benchmark::State& state, const CudaBackend& cuda) {
  const Gpu gpu = first_gpu(cuda);
  const auto elements = static_cast<std::size_t>(state.range(0));
  const auto memory = gpu.device->allocate({.bytes = bytes_for(DType::bf16, elements)});
  const ConstElements gradient(DType::bf16, memory->data(), elements);
  compare_with_copy(state, gpu, elements, touched_by_norm(gradient),
                    [&] { benchmark::DoNotOptimize(cuda.kernels().sum_of_squares(*gpu.stream, gradient)); });
}

void add(const char* name, std::int64_t elements, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name, run)
      ->ArgName("elements")
      ->Arg(elements)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond)
      ->Iterations(kPairs);
}

}  // namespace

void register_gpu() {
  const CudaBackend* cuda = nullptr;
  try {
    cuda = &load_cuda_backend();
    if (cuda->gpus().empty()) return;
  } catch (const ConfigError& error) {
    std::fprintf(stderr, "no gpu_* cases: %s\n", error.what());
    return;
  }
  constexpr std::int64_t kElements = 1 << 28;
  add("gpu_adamw_fp32", kElements, [cuda](benchmark::State& state) { adamw(state, *cuda, DType::f32); });
  add("gpu_adamw_bf16_mixed", kElements, [cuda](benchmark::State& state) { adamw(state, *cuda, DType::bf16); });
  add("gpu_cast_to_bf16", kElements, [cuda](benchmark::State& state) { narrowing(state, *cuda); });
  add("gpu_grad_norm_bf16", 1 << 24, [cuda](benchmark::State& state) { norm(state, *cuda); });
}

}  // namespace shardplan::bench
