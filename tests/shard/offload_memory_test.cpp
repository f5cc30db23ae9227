// A model whose states are several times the memory it may have: they are in a file, and what stays is what the plan says.
//
// The limit is on address space, from where a run of nearly nothing leaves it. With SHARDPLAN_TEST_ALL=1 the model's
// parameters are 1 GiB, and its states 10 GiB.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "base/error.h"
#include "base/half.h"
#include "runtime/cpu_device.h"
#include "runtime/local_communicator.h"
#include "shard/zero_optimizer.h"
#include "tests/support/run_processes.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/whole_grid.h"

namespace shardplan::test {
namespace {

using test_support::TemporaryFolder;

constexpr std::uint64_t kUnits = 8;

std::uint64_t model_elements() {
  return std::uint64_t{1} << (test_support::whole_grid() ? 29 : 25);
}

Catalog catalog_of(std::uint64_t elements) {
  Catalog catalog;
  catalog.runs.push_back(
      {.name = "block", .count = kUnits, .tensors = {{.name = "weight", .shape = {elements / kUnits}}}});
  return catalog;
}

// With an average of the weights: 20 bytes of states per parameter, of which 4 are parameter and gradient.
Setup setup_of(const std::string& offload) {
  Setup setup;
  setup.policy = policy_named("bf16-mixed");
  setup.ema = true;
  if (!offload.empty()) setup.offload = parse_offload(offload).offload;
  setup.offload.block_elements = std::uint64_t{1} << 16;
  return setup;
}

Bytes states_of_plan(const StepPlan& plan) {
  Bytes sum;
  for (const ArenaPlan* arena : {&plan.device, &plan.pinned, &plan.file}) {
    for (const Array& array : arena->arrays) {
      const MemoryClass of = class_of(array.role);
      const bool state = of == MemoryClass::parameters || of == MemoryClass::gradients ||
                         (of == MemoryClass::optimizer_states && array.role <= BufferRole::ema);
      if (state) sum += array.count * array.bytes;
    }
  }
  return sum;
}

// Two steps, with gradients of 1. Weights begin at 1, so they fall.
void train(std::uint64_t elements, const std::string& offload, const std::string& folder) {
  const Catalog catalog = catalog_of(elements);
  const StepPlan plan = make_step_plan(catalog, setup_of(offload));
  CpuDevice cpu;
  const auto world = std::move(make_local_communicators(1).front());
  ZeroOptions options;
  options.groups = {{.match = "*", .values = {.learning_rate = 0.1, .weight_decay = 0}}};
  options.offload.folder = folder;
  options.initial_values = [](const TensorRange&, std::span<float> values) {
    std::fill(values.begin(), values.end(), 1.0F);
  };
  ZeroOptimizer optimizer(catalog, plan, cpu, {.world = world.get(), .shard_group = world.get()}, options);
  for (int step = 0; step < 2; ++step) {
    optimizer.begin(ProgramKind::last_micro_batch);
    for (std::uint64_t unit = 0; unit < kUnits; ++unit) {
      const auto* weights =
          reinterpret_cast<const std::uint16_t*>(optimizer.enter(unit, Pass::forward).parameters[0].data);
      const float expected = step == 0 ? 1.0F : 0.9F;
      EXPECT_NEAR(bf16_to_fp32(weights[0]), expected, 0.01F);
      EXPECT_NEAR(bf16_to_fp32(weights[elements / kUnits - 1]), expected, 0.01F);
      optimizer.leave(unit);
    }
    for (std::uint64_t unit = kUnits; unit-- > 0;) {
      const TensorView gradient = optimizer.enter(unit, Pass::backward).gradients[0];
      std::fill_n(reinterpret_cast<std::uint16_t*>(gradient.data), gradient.elements, fp32_to_bf16(1.0F));
      optimizer.leave(unit);
    }
    optimizer.step();
  }
}

// A line of /proc/self/status.
Bytes of_process(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::strtoull(line.c_str() + key.size() + 1, nullptr, 10) * 1_KiB;
  }
  throw Error("/proc/self/status has no " + key);
}

// States of `times` the memory that is allowed.
void expect_planned_growth(const char* offload, std::uint64_t times) {
  const TemporaryFolder folder;
  const std::uint64_t elements = model_elements();
  const StepPlan plan = make_step_plan(catalog_of(elements), setup_of(offload));
  const Bytes planned = plan.device.bytes + plan.pinned.bytes;
  const Bytes allowed{states_of_plan(plan).count() / times};
  ASSERT_LT(planned, allowed);
  const auto outcomes = run_processes(1, [&](int) {
    train(kUnits * 2048, offload, folder.path());  // nearly nothing
    const Bytes before = of_process("VmRSS");
    std::ofstream("/proc/self/clear_refs") << "5";  // VmHWM begins anew
    const Bytes space = of_process("VmSize") + allowed;
    const rlimit limit{space.count(), space.count()};
    ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    EXPECT_THROW(train(elements, "", folder.path()), OutOfMemory);
    train(elements, offload, folder.path());
    const Bytes growth = of_process("VmHWM") - before;
    const double ratio = static_cast<double>(growth.count()) / static_cast<double>(planned.count());
    EXPECT_GT(ratio, 0.98);
    EXPECT_LT(ratio, 1.02);
    std::printf("%s grew by %.6f of the plan's %llu bytes; allowed were %llu\n", offload, ratio,
                static_cast<unsigned long long>(planned.count()), static_cast<unsigned long long>(allowed.count()));
  });
  EXPECT_EQ(outcomes[0].message, "");
}

TEST(OffloadMemory, StatesOfFourTimesTheMemoryTrainInWhatThePlanSays) {
  expect_planned_growth("optimizer=file", 4);
}

TEST(OffloadMemory, SixTimesWithGradientsAndParametersInTheFileToo) {
  expect_planned_growth("optimizer=file,gradients=file,parameters=file", 6);
}

}  // namespace
}  // namespace shardplan::test
