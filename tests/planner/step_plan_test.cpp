#include "planner/step_plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/multiprecision/cpp_int.hpp>
#include <map>
#include <set>

#include "base/error.h"
#include "tests/support/catalogs.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using namespace test_support;  // NOLINT(google-build-using-namespace)

constexpr BufferRole kStateRoles[] = {BufferRole::parameter, BufferRole::gradient,     BufferRole::accumulator,
                                      BufferRole::master,    BufferRole::first_moment, BufferRole::second_moment,
                                      BufferRole::ema};
constexpr BufferRole kSlotRoles[] = {BufferRole::gathered_parameter, BufferRole::contribution, BufferRole::partial};

StepPlan plan_of(const Catalog& catalog, int stage, std::uint64_t world, const char* policy = "bf16-mixed") {
  shardplan::Setup setup;
  setup.stage = stage;
  setup.world_size = world;
  setup.policy = policy_named(policy);
  return make_step_plan(catalog, setup);
}

TEST(StepPlan, OfAnEmptyCatalogIsEmpty) {
  for (int stage = 0; stage <= 3; ++stage) {
    const StepPlan plan = plan_of({}, stage, 4);
    EXPECT_EQ(plan.device.resident, 4 * 64_B);
    EXPECT_EQ(plan.device.slots.size(), 0U);
    EXPECT_EQ(operation_count(plan.programs[static_cast<std::size_t>(ProgramKind::last_micro_batch)]), 0U);
  }
}

TEST(StepPlan, StepsAreForwardsThenBackwards) {
  const StepPlan plan = plan_of(uniform_catalog(5, 64), 0, 1);
  for (std::uint64_t unit = 0; unit < 5; ++unit) {
    EXPECT_EQ(unit_of_step(plan, unit), unit);
    EXPECT_EQ(unit_of_step(plan, backward_step(plan, unit)), unit);
    EXPECT_EQ(backward_step(plan, unit), 9 - unit);
  }
}

// A dtype that the model fixes and one that the policy gives are one dtype in the end.
Layout without_fixed_dtypes(Layout layout) {
  for (LayoutRun& run : layout.runs) {
    for (BufferLayout& buffer : run.unit.buffers) buffer.dtype.reset();
  }
  return layout;
}

// Whether two plans do the same, whatever the words of their setups.
bool same_plan(const StepPlan& a, const StepPlan& b) {
  return without_fixed_dtypes(a.layout) == without_fixed_dtypes(b.layout) && a.buffers == b.buffers &&
         a.ties == b.ties && a.device == b.device && a.programs == b.programs &&
         a.setup.optimizer == b.setup.optimizer && a.setup.ema == b.setup.ema &&
         a.setup.accumulation == b.setup.accumulation && a.setup.reduction == b.setup.reduction &&
         resolved_reduction_group(a.setup) == resolved_reduction_group(b.setup);
}

TEST(Hash, EqualPlansHaveEqualHashes) {
  check_property(300, [] {
    const Catalog catalog = *any_catalog();
    const shardplan::Setup setup = *any_setup();
    const StepPlan once = make_step_plan(catalog, setup);
    const StepPlan again = make_step_plan(catalog, setup);
    RC_ASSERT(once == again);
    RC_ASSERT(once.hash.size() == 32U);
  });
}

TEST(Hash, DifferentPlansHaveDifferentHashes) {
  check_property(500, [] {
    const Catalog catalog = *any_catalog(Sizes::small);
    const shardplan::Setup setup = *any_setup();
    Catalog other = catalog;
    if (!other.runs.empty()) {
      UnitRun& run = other.runs[*rc::gen::inRange<std::size_t>(0, other.runs.size())];
      if (!run.tensors.empty()) {
        Tensor& tensor = run.tensors[*rc::gen::inRange<std::size_t>(0, run.tensors.size())];
        if (*rc::gen::arbitrary<bool>())
          tensor.trainable = tensor.dtype && !is_trainable_dtype(*tensor.dtype) ? false : !tensor.trainable;
        if (tensor.tied_to.empty() && *rc::gen::arbitrary<bool>()) tensor.dtype = DType::f32;
      }
    }
    const StepPlan a = make_step_plan(catalog, setup);
    const StepPlan b = make_step_plan(other, setup);
    RC_ASSERT((a.hash == b.hash) == same_plan(a, b));
  });
}

TEST(Hash, EveryChoiceOfTheSetupIsInIt) {
  const Catalog catalog = gpt2_catalog({"gpt2", 768, 12});
  shardplan::Setup base;
  base.world_size = 16;
  base.stage = 3;
  base.accumulation = 2;
  std::map<std::string, std::string> seen{{make_step_plan(catalog, base).hash, "base"}};
  const auto expect_new = [&](const std::string& what, const auto& change) {
    shardplan::Setup setup = base;
    change(setup);
    const auto [place, is_new] = seen.emplace(make_step_plan(catalog, setup).hash, what);
    EXPECT_TRUE(is_new) << what << " has the hash of " << place->second;
  };
  expect_new("world", [](shardplan::Setup& s) { s.world_size = 32; });
  expect_new("replicate", [](shardplan::Setup& s) { s.replicate = 2; });
  expect_new("stage 2", [](shardplan::Setup& s) { s.stage = 2; });
  expect_new("stage 1", [](shardplan::Setup& s) { s.stage = 1; });
  expect_new("stage 1, micro-batch", [](shardplan::Setup& s) { s.stage = 1, s.cadence = Cadence::micro_batch; });
  expect_new("policy", [](shardplan::Setup& s) { s.policy = policy_named("fp16-mixed"); });
  expect_new("compute", [](shardplan::Setup& s) { s.policy.compute = DType::f32; });
  expect_new("wire", [](shardplan::Setup& s) { s.policy.wire = DType::f32; });
  // Two types of one size move no offset: only the words differ.
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const std::string with = fmt::format(" {}", name(dtype));
    expect_new("first moment" + with, [&](shardplan::Setup& s) { s.policy.first_moment = dtype; });
    expect_new("second moment" + with, [&](shardplan::Setup& s) { s.policy.second_moment = dtype; });
    expect_new("accumulator" + with, [&](shardplan::Setup& s) { s.policy.gradient_accumulator = dtype; });
    expect_new("master" + with, [&](shardplan::Setup& s) { s.policy.master = dtype; });
  }
  expect_new("gradient", [](shardplan::Setup& s) { s.policy.gradient = DType::f16; });
  expect_new("wire fp16", [](shardplan::Setup& s) { s.policy.wire = DType::f16; });
  expect_new("master", [](shardplan::Setup& s) { s.policy.master.reset(); });
  expect_new("optimizer", [](shardplan::Setup& s) { s.optimizer = OptimizerKind::lion; });
  expect_new("adam", [](shardplan::Setup& s) { s.optimizer = OptimizerKind::adam; });
  expect_new("ema", [](shardplan::Setup& s) { s.ema = true; });
  expect_new("prefetch", [](shardplan::Setup& s) { s.prefetch = 2; });
  expect_new("accumulation", [](shardplan::Setup& s) { s.accumulation = 3; });
  expect_new("recompute", [](shardplan::Setup& s) { s.recompute = Recompute::full; });
  expect_new("transport", [](shardplan::Setup& s) { s.transport = Transport::staged; });
  expect_new("reduction", [](shardplan::Setup& s) { s.reduction = Reduction::fast; });
  expect_new("reduction group", [](shardplan::Setup& s) { s.reduction_group = 4; });
}

TEST(Hash, DoesNotDependOnHowAChoiceIsWritten) {
  const Catalog catalog = gpt2_catalog({"gpt2", 768, 12});
  shardplan::Setup implied;
  implied.world_size = 16;
  implied.accumulation = 2;
  shardplan::Setup written = implied;
  written.cadence = Cadence::step;
  written.reduction_group = 16;
  written.policy.name = "mine";
  EXPECT_EQ(make_step_plan(catalog, implied).hash, make_step_plan(catalog, written).hash);
}

// A change of this literal is a change of every plan: engines of the two versions refuse to run together.
TEST(Hash, OfOnePlanIsAsBefore) {
  shardplan::Setup setup;
  setup.world_size = 8;
  setup.stage = 3;
  EXPECT_EQ(make_step_plan(llama_catalog({"llama-2-7b", 32000, 4096, 32, 11008, 4096, false}), setup).hash,
            "3c1e1bcf46e77509c7069451c35729b9");
}

using Wide = boost::multiprecision::uint128_t;

// With 128-bit sums beside it: a plan counts right or refuses.
TEST(Overflow, IsAnErrorAndNeverAWrap) {
  check_property(1000, [] {
    const auto any_size = [] { return std::uint64_t{1} << *rc::gen::inRange(0, 60); };
    shardplan::Setup setup = *any_setup();
    setup.replicate = 1;
    const std::uint64_t units = any_size();
    const std::uint64_t elements = any_size() - *rc::gen::inRange<std::uint64_t>(0, 2);
    const Catalog catalog = uniform_catalog(units, elements);
    try {
      const StepPlan plan = make_step_plan(catalog, setup);
      const LayoutRun& run = plan.layout.runs.front();
      const auto padded = Wide(run.unit.buffers.front().padded_elements);
      RC_ASSERT(padded >= elements);
      RC_ASSERT(run.unit.buffers.front().shard_elements * Wide(setup.world_size) == padded);
      Wide resident = 0;
      for (const Array& array : plan.device.arrays) {
        const Wide of_unit = (array.elements * Wide(bits(array.dtype)) + 7) / 8;
        RC_ASSERT(of_unit == array.bytes.count());
        resident += of_unit * array.count;
      }
      RC_ASSERT(resident == plan.device.resident.count());
      RC_ASSERT(plan.device.bytes >= plan.device.live_peak);
      RC_ASSERT(plan.device.live_peak >= plan.device.resident);
      for (const Slot& slot : plan.device.slots) RC_ASSERT(slot.begin < slot.end);
    } catch (const ArithmeticOverflow&) {
      // The least that a plan keeps is a shard of everything: a refusal needs a reason.
      RC_ASSERT(Wide(units) * (elements + 4096) * 32 * 4096 > UINT64_MAX);
    }
  });
}

TEST(Overflow, OfUnitsWithoutElementsIsAnErrorToo) {
  for (const std::uint64_t units : {1ULL << 61, 1ULL << 62, 1ULL << 63, ~0ULL}) {
    for (int stage = 0; stage <= 3; ++stage) {
      EXPECT_THROW(plan_of(uniform_catalog(units, 0), stage, 4), ArithmeticOverflow) << units;
    }
  }
}

TEST(Overflow, OfOneTensorOrOfTheSumIsAnError) {
  EXPECT_THROW(plan_of(uniform_catalog(1, ~0ULL), 0, 1), ArithmeticOverflow);
  EXPECT_THROW(plan_of(uniform_catalog(1, 1ULL << 63), 3, 4096), ArithmeticOverflow);
  EXPECT_THROW(plan_of(uniform_catalog(1ULL << 40, 1ULL << 30), 0, 1), ArithmeticOverflow);
  Catalog catalog = uniform_catalog(1, 1ULL << 60);
  for (int i = 0; i < 8; ++i) catalog.runs.push_back(catalog.runs.front());
  EXPECT_THROW(plan_of(catalog, 0, 1), ArithmeticOverflow);
}

TEST(StepPlan, ATrainableTensorOfAnIntegerTypeIsNamed) {
  Catalog catalog = uniform_catalog(4, 64);
  catalog.runs.front().tensors.push_back({.name = "packed", .shape = {64}, .dtype = DType::i8, .tied_to = ""});
  try {
    make_step_plan(catalog, {});
    FAIL() << "a gradient in int8";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.key(), "layers.0.packed");
    EXPECT_NE(error.problem().find("int8"), std::string::npos) << error.problem();
  }
  catalog.runs.front().tensors.back().trainable = false;
  EXPECT_NO_THROW(make_step_plan(catalog, {}));
}

TEST(StepPlan, ASetupThatContradictsItselfIsRefused) {
  shardplan::Setup setup;
  setup.world_size = 6;
  setup.replicate = 4;
  EXPECT_THROW(make_step_plan({}, setup), ConfigError);
}

TEST(StepPlan, EveryRoleHasANameAndAClass) {
  std::set<std::string_view> names;
  for (const auto& roles : {std::vector<BufferRole>(std::begin(kStateRoles), std::end(kStateRoles)),
                            std::vector<BufferRole>(std::begin(kSlotRoles), std::end(kSlotRoles)),
                            std::vector<BufferRole>{BufferRole::control, BufferRole::staging}}) {
    for (const BufferRole role : roles) {
      EXPECT_TRUE(names.insert(name(role)).second) << name(role);
      EXPECT_FALSE(name(class_of(role)).empty());
    }
  }
}

}  // namespace
}  // namespace shardplan
