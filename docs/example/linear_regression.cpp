// Two ranks fit y = w.x at ZeRO stage 3: the smallest client of the library.
#include <cstdio>
#include <thread>

#include "runtime/cpu_device.h"
#include "runtime/local_communicator.h"
#include "shard/zero_optimizer.h"

using namespace shardplan;

int main() {
  CatalogBuilder builder("linear", "example");
  builder.begin_unit("layer");
  builder.add({.name = "layer.weight", .shape = {4}});
  const Catalog catalog = builder.finish();

  Setup setup;
  setup.world_size = 2;
  setup.stage = 3;
  setup.policy = policy_named("fp32");
  const StepPlan plan = make_step_plan(catalog, setup);  // pure: print it, size it, hash it

  auto worlds = make_local_communicators(2);
  CpuDevice cpu;
  const auto train = [&](std::size_t rank) {
    ZeroOptions options;
    options.groups = {{.match = "*", .values = {.learning_rate = 0.1, .weight_decay = 0}}};
    options.initial_values = [](const TensorRange&, std::span<float> values) {
      std::fill(values.begin(), values.end(), 0.F);
    };
    ZeroOptimizer optimizer(catalog, plan, cpu, {worlds[rank].get(), worlds[rank].get(), nullptr}, options);
    for (int step = 0; step < 200; ++step) {
      float error = 0;
      optimizer.begin(ProgramKind::last_micro_batch);
      const auto* w = reinterpret_cast<const float*>(optimizer.enter(0, Pass::forward).parameters[0].data);
      const std::size_t i = (static_cast<std::size_t>(step) * 2 + rank) % 4;  // x is the i-th unit vector, y is i
      error = w[i] - static_cast<float>(i);
      optimizer.leave(0);
      reinterpret_cast<float*>(optimizer.enter(0, Pass::backward).gradients[0].data)[i] += error;
      optimizer.leave(0);
      optimizer.step();
    }
    optimizer.visit_parameters([&](const TensorRange& tensor, std::span<const float> w) {
      if (rank == 0) std::printf("%s = %.2f %.2f %.2f %.2f\n", tensor.name.data(), w[0], w[1], w[2], w[3]);
    });
  };
  std::thread other(train, 1);
  train(0);
  other.join();
}
