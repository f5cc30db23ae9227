#include <vector>

#include "planner/step_plan.h"
#include "runtime/arena.h"
#include "runtime/cpu_device.h"
#include "shard/kernels/optimizer_update.h"
#include "tools/bench/cases.h"
#include "tools/bench/limit.h"

namespace shardplan::bench {
namespace {

// Small steps, so that values stay ordinary however often they are applied.
constexpr UpdateOptions kOptions{.kind = OptimizerKind::adamw, .lr = 1e-7, .step = 100, .gradient_factor = 0.5F};

// The arrays of an update; narrow ones are null in fp32.
struct Arrays {
  DType narrow_dtype = DType::f32;
  float* parameter = nullptr;  // the master, where there is a narrow one
  float* gradient = nullptr;   // scratch of the four passes, where there is a narrow one
  float* first_moment = nullptr;
  float* second_moment = nullptr;
  std::uint16_t* narrow_parameter = nullptr;
  std::uint16_t* narrow_gradient = nullptr;

  void fill(std::size_t elements) const {
    for (std::size_t i = 0; i < elements; ++i) {
      parameter[i] = static_cast<float>(i % 97) * 0.01F - 0.5F;
      gradient[i] = static_cast<float>(i * 7 % 101) * 0.01F - 0.5F;
      first_moment[i] = 0.1F * gradient[i];
      second_moment[i] = 0.01F + gradient[i] * gradient[i];
    }
    if (narrow_gradient != nullptr) cast({narrow_dtype, narrow(narrow_gradient, elements)}, wide(gradient, elements));
  }

  UpdateArrays of_update(Part part) const {
    UpdateArrays arrays;
    arrays.first_moment = wide(first_moment + part.first, part.count);
    arrays.second_moment = wide(second_moment + part.first, part.count);
    if (narrow_gradient == nullptr) {
      arrays.parameter = wide(parameter + part.first, part.count);
      arrays.gradient = Elements(wide(gradient + part.first, part.count));
    } else {
      arrays.master = wide(parameter + part.first, part.count);
      arrays.parameter = {narrow_dtype, narrow(narrow_parameter + part.first, part.count)};
      arrays.gradient = Elements(narrow_dtype, narrow(narrow_gradient + part.first, part.count));
    }
    return arrays;
  }

  StreamRange of_stream(Part part) const {
    StreamRange range{.first = parameter + part.first,
                      .second = first_moment + part.first,
                      .third = second_moment + part.first,
                      .elements = part.count};
    if (narrow_gradient == nullptr) {
      range.gradient = gradient + part.first;
    } else {
      range.narrow_gradient = narrow_gradient + part.first;
      range.narrow_parameter = narrow_parameter + part.first;
    }
    benchmark::DoNotOptimize(range.zero);
    return range;
  }

 private:
  static std::span<float> wide(float* first, std::size_t count) { return {first, count}; }
  static std::span<std::uint16_t> narrow(std::uint16_t* first, std::size_t count) { return {first, count}; }
};

Arrays take_arrays(ArrayMemory& memory, std::size_t elements, DType narrow_dtype) {
  Arrays arrays{.narrow_dtype = narrow_dtype,
                .parameter = memory.take<float>(elements),
                .gradient = memory.take<float>(elements),
                .first_moment = memory.take<float>(elements),
                .second_moment = memory.take<float>(elements)};
  if (narrow_dtype != DType::f32) {
    arrays.narrow_parameter = memory.take<std::uint16_t>(elements);
    arrays.narrow_gradient = memory.take<std::uint16_t>(elements);
  }
  arrays.fill(elements);
  return arrays;
}

// Passes one to four: widen the gradients, unscale them, update, narrow the parameters.
void four_passes(const Arrays& arrays, Part part) {
  const std::span<float> gradient(arrays.gradient + part.first, part.count);
  const std::span<float> master(arrays.parameter + part.first, part.count);
  UpdateArrays views = arrays.of_update(part);
  cast(gradient, views.gradient);
  for (float& value : gradient) value *= kOptions.gradient_factor;
  const Elements parameter = views.parameter;
  views.parameter = master;
  views.master = {};
  views.gradient = Elements(gradient);
  UpdateOptions options = kOptions;
  options.gradient_factor = 1;
  optimizer_update(options, views);
  cast(parameter, std::span<const float>(master));
}

enum class Passes { one, four };

void adamw(benchmark::State& state, DType narrow_dtype, Passes passes) {
  const auto elements = static_cast<std::size_t>(state.range(0));
  ArrayMemory memory(ArrayMemory::room(elements * (4 * sizeof(float) + 2 * sizeof(std::uint16_t)), 6));
  const Arrays arrays = take_arrays(memory, elements, narrow_dtype);
  Team team(static_cast<int>(state.range(1)));
  const auto limit = [&](int thread) {
    limit_kernels().stream(arrays.of_stream(part_of(elements, thread, team.size())));
  };
  const auto update = [&](int thread) {
    const Part part = part_of(elements, thread, team.size());
    if (passes == Passes::four) {
      four_passes(arrays, part);
    } else {
      optimizer_update(kOptions, arrays.of_update(part));
    }
  };
  compare(state, "ratio_to_limit", elements, [&] { return team.seconds(limit); }, [&] { return team.seconds(update); });
}

// One unit of `elements` parameters in fp32: its arrays are as far apart as they are long, but for what the plan adds.
StepPlan plan_of(std::size_t elements) {
  Catalog catalog;
  catalog.runs.push_back({.name = "unit", .tensors = {{.name = "weight", .shape = {elements}}}});
  Setup setup;
  setup.policy = policy_named("fp32");
  return make_step_plan(catalog, setup);
}

void adamw_congruent(benchmark::State& state) {
  const auto elements = static_cast<std::size_t>(state.range(0));
  const StepPlan plan = plan_of(elements);
  CpuDevice device;
  Arena arena(device, {.bytes = plan.device.bytes});
  std::vector<Lease> leases;
  const auto take = [&](BufferRole role) {
    const std::optional<ByteRange> range = resident_range(plan, role, 0);
    leases.push_back(arena.take(range.value().offset.count(), range.value().bytes));
    return leases.back().as<float>().data();
  };
  const Arrays planned{.parameter = take(BufferRole::parameter),
                       .gradient = take(BufferRole::gradient),
                       .first_moment = take(BufferRole::first_moment),
                       .second_moment = take(BufferRole::second_moment)};
  planned.fill(elements);

  // Distances that are no multiple of a large power of two.
  const std::size_t apart = elements + 1'000'016 + elements / 48 / 16 * 16;
  ArrayMemory memory(ArrayMemory::room(4 * apart * sizeof(float), 1));
  auto* const first = memory.take<float>(4 * apart);
  const Arrays unrelated{.parameter = first,
                         .gradient = first + apart,
                         .first_moment = first + 2 * apart,
                         .second_moment = first + 3 * apart};
  unrelated.fill(elements);

  Team team(static_cast<int>(state.range(1)));
  const auto update = [&](const Arrays& arrays) {
    return team.seconds(
        [&](int thread) { optimizer_update(kOptions, arrays.of_update(part_of(elements, thread, team.size()))); });
  };
  compare(state, "ratio_to_uncongruent", elements, [&] { return update(unrelated); }, [&] { return update(planned); });
}

template <typename Function>
void add(const char* name, std::int64_t elements, Function function) {
  benchmark::RegisterBenchmark(name, function)
      ->ArgNames({"elements", "threads"})
      ->ArgsProduct({{elements}, {1, 2}})
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->Iterations(kPairs);
}

}  // namespace

void register_adamw() {
  constexpr std::int64_t kElements = 100'000'000;
  const auto with = [](DType narrow_dtype, Passes passes) {
    return [narrow_dtype, passes](benchmark::State& state) { adamw(state, narrow_dtype, passes); };
  };
  add("adamw_fp32", kElements, with(DType::f32, Passes::one));
  add("adamw_bf16_mixed", kElements, with(DType::bf16, Passes::one));
  add("adamw_fp16_mixed", kElements, with(DType::f16, Passes::one));
  add("adamw_bf16_mixed_four_pass", kElements, with(DType::bf16, Passes::four));
  add("adamw_congruent", std::int64_t{1} << 26, adamw_congruent);
}

}  // namespace shardplan::bench
