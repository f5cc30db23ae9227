// A client that ignores units hands in a micro-batch's gradients at once: the same bits as one that enters and leaves.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "tests/shard/training_run.h"
#include "tests/support/run_ranks.h"
#include "tests/support/temporary_folder.h"

namespace shardplan::test {
namespace {

ZeroOptions test_options() {
  ZeroOptions options;
  options.clip_norm = 0.5;
  options.initial_values = synthetic_values;
  return options;
}

Setup setup_of(const char* precision, std::uint64_t world, int stage) {
  Setup setup;
  setup.policy = policy_named(precision);
  setup.world_size = world;
  setup.stage = stage;
  setup.accumulation = 2;
  setup.cadence = Cadence::micro_batch;
  return setup;
}

// What SyntheticClient adds, tensor by tensor in the catalog's order, in fp32.
class Gradients {
 public:
  Gradients(const Catalog& catalog, const Script& script, const GradientPlace& micro_batch) {
    GradientPlace place = micro_batch;
    for (const UnitRun& run : catalog.runs) {
      for (std::uint64_t i = 0; i < run.count; ++i, ++place.unit) {
        for (place.tensor = 0; place.tensor < run.tensors.size(); ++place.tensor) {
          const Tensor& tensor = run.tensors[place.tensor];
          std::vector<float>& values = values_.emplace_back();
          if (!tensor.trainable) continue;
          if (!adds_gradient(script, place.step, place.unit)) continue;
          values.resize(elements(tensor.shape));
          for (std::uint64_t e = 0; e < values.size(); ++e) {
            values[e] = synthetic_gradient(script, place, e, values.size());
          }
        }
      }
    }
    for (const std::vector<float>& values : values_) all_.emplace_back(std::span(values));
  }
  std::span<const ConstElements> all() const { return all_; }

 private:
  std::vector<std::vector<float>> values_;
  std::vector<ConstElements> all_;
};

void with_ranks(const Setup& setup, const std::function<void(ZeroOptimizer&, int rank)>& body) {
  const Catalog catalog = odd_catalog();
  const StepPlan plan = make_step_plan(catalog, setup);
  CpuDevice cpu;
  const test_support::TemporaryFolder folder;
  run_ranks(static_cast<int>(setup.world_size), [&](Communicator& world) {
    ZeroOptions options = test_options();
    options.offload.folder = folder.path();
    ZeroOptimizer optimizer(catalog, plan, cpu, {.world = &world, .shard_group = &world}, options);
    body(optimizer, world.rank());
  });
}

TEST(WithoutUnits, TheSameBitsAsWithThem) {
  const Catalog catalog = odd_catalog();
  Script script;
  script.micro_batches = {2, 2, 1};
  script.silent_unit = 3;
  for (const Recompute recompute : {Recompute::none, Recompute::full}) {
    for (int stage = 0; stage < 3; ++stage) {
      auto setup = setup_of("fp32", 3, stage);
      setup.recompute = recompute;
      if (recompute == Recompute::full) setup.offload = parse_offload("gradients=file").offload;
      SCOPED_TRACE(fmt::format("stage {}, recompute {}", stage, name(recompute)));
      const Trained expected = run_reference(catalog, setup, test_options(), script);
      with_ranks(setup, [&](ZeroOptimizer& optimizer, int rank) {
        for (std::uint64_t step = 0; step < script.micro_batches.size(); ++step) {
          for (std::uint64_t i = 0; i < script.micro_batches[step]; ++i) {
            const bool last = i + 1 == script.micro_batches[step];
            const Gradients gradients(catalog, script, {.step = step, .micro_batch = i, .rank = rank});
            optimizer.reduce_gradients(last ? ProgramKind::last_micro_batch : ProgramKind::train_micro_batch,
                                       gradients.all());
          }
          EXPECT_EQ(difference(optimizer.step(), expected.reports[step]), "");
        }
        EXPECT_EQ(parameters_of(optimizer), expected.parameters);
      });
    }
  }
}

TEST(WithoutUnits, ParametersStayWhereTheyAre) {
  const Catalog catalog = odd_catalog();
  Script script;
  script.micro_batches = {1};
  for (int stage = 0; stage < 3; ++stage) {
    with_ranks(setup_of("bf16-mixed", 2, stage), [&](ZeroOptimizer& optimizer, int rank) {
      std::vector<const std::byte*> before;
      std::vector<const std::byte*> after;
      for (std::uint64_t unit = 0; unit < unit_count(catalog); ++unit) {
        for (const TensorView& view : optimizer.parameters(unit)) before.push_back(view.data);
      }
      const std::vector<std::byte> first(before[0], before[0] + 64);
      const Gradients gradients(catalog, script, {.rank = rank});
      optimizer.reduce_gradients(ProgramKind::last_micro_batch, gradients.all());
      optimizer.step();
      for (std::uint64_t unit = 0; unit < unit_count(catalog); ++unit) {
        for (const TensorView& view : optimizer.parameters(unit)) after.push_back(view.data);
      }
      EXPECT_EQ(after, before);
      EXPECT_FALSE(std::equal(first.begin(), first.end(), after[0])) << "the step changed nothing";
    });
  }
}

void expect_failure(const std::function<void()>& act, const std::string& words) {
  try {
    act();
    ADD_FAILURE() << "no CheckFailure that says " << words;
  } catch (const CheckFailure& failure) {
    EXPECT_NE(std::string(failure.what()).find(words), std::string::npos) << failure.what();
  }
}

TEST(WithoutUnits, WhatDoesNotFitIsRefusedBeforeAnythingHappens) {
  const Catalog catalog = odd_catalog();
  Script script;
  script.micro_batches = {1};
  const Gradients gradients(catalog, script, {});
  with_ranks(setup_of("fp32", 1, 1), [&](ZeroOptimizer& optimizer, int) {
    std::vector<ConstElements> wrong(gradients.all().begin(), gradients.all().end());
    wrong[0].elements -= 1;
    constexpr ProgramKind kLast = ProgramKind::last_micro_batch;
    expect_failure([&] { optimizer.reduce_gradients(kLast, wrong); }, "443 elements for embed.weight, expected 444");
    wrong[0] = {};
    wrong[5] = gradients.all()[0];  // layers.0.base is frozen
    expect_failure([&] { optimizer.reduce_gradients(kLast, wrong); }, "444 elements for layers.0.base, expected 0");
    wrong.pop_back();
    expect_failure([&] { optimizer.reduce_gradients(kLast, wrong); }, "expected one for each of 28 tensors");
    expect_failure([&] { optimizer.reduce_gradients(ProgramKind::evaluate, gradients.all()); }, "no gradients");
    optimizer.reduce_gradients(kLast, gradients.all());
    EXPECT_EQ(optimizer.step().step, 1U);
  });
  with_ranks(setup_of("fp32", 2, 3), [&](ZeroOptimizer& optimizer, int) {
    expect_failure([&] { optimizer.reduce_gradients(ProgramKind::last_micro_batch, gradients.all()); }, "enter()");
    expect_failure([&] { optimizer.parameters(0); }, "enter()");
  });
}

}  // namespace
}  // namespace shardplan::test
