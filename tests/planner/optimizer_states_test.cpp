// States in their true shapes, against the definitions of their implementations.
#include "planner/optimizer_states.h"

#include <gtest/gtest.h>

#include "planner/formats/read_model.h"
#include "planner/report.h"
#include "tests/support/config_error.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

// A test's own scope has a function of the name Setup.
Setup setup_of(OptimizerKind kind, const char* precision) {
  Setup setup;
  setup.policy = policy_named(precision);
  setup.optimizer = kind;
  return setup;
}

Bytes bytes(OptimizerKind kind, const Shape& shape, const char* precision = "fp32", bool hidden = true) {
  return state_bytes({.shape = shape, .hidden_matrix = hidden}, {.kind = kind}, policy_named(precision));
}

TEST(OptimizerStates, OfAdamWFollowThePolicy) {
  EXPECT_EQ(bytes(OptimizerKind::adamw, {10, 20}), Bytes{8 * 200});
  EXPECT_EQ(bytes(OptimizerKind::adamw, {10, 20}, "bf16"), Bytes{4 * 200});
  EXPECT_EQ(bytes(OptimizerKind::lion, {10, 20}), Bytes{4 * 200});
  EXPECT_EQ(bytes(OptimizerKind::sgd, {10, 20}), Bytes{});
}

TEST(OptimizerStates, OfAdafactorAreRowsAndColumns) {
  EXPECT_EQ(bytes(OptimizerKind::adafactor, {30, 20}), Bytes{4 * (30 + 20)});
  EXPECT_EQ(bytes(OptimizerKind::adafactor, {5, 30, 20}), Bytes{4 * (5 * 30 + 5 * 20)}) << "over the last two dims";
  EXPECT_EQ(bytes(OptimizerKind::adafactor, {30}), Bytes{4 * 30});
  EXPECT_EQ(bytes(OptimizerKind::adafactor, {}), Bytes{4});
  EXPECT_EQ(bytes(OptimizerKind::adafactor, {0, 20}), Bytes{});
  EXPECT_EQ(state_bytes({.shape = {30, 20}}, {.kind = OptimizerKind::adafactor, .adafactor_first_moment = true},
                        policy_named("fp32")),
            Bytes{4 * (600 + 30 + 20)});
}

TEST(OptimizerStates, OfAdam8BitHaveScalesForBlocksOf256AndSmallTensorsIn32Bits) {
  EXPECT_EQ(bytes(OptimizerKind::adam8bit, {4096}), Bytes{2 * 4096 + 2 * 4 * 16});
  EXPECT_EQ(bytes(OptimizerKind::adam8bit, {4097}), Bytes{2 * 4097 + 2 * 4 * 17});
  EXPECT_EQ(bytes(OptimizerKind::adam8bit, {4095}), Bytes{8 * 4095});
}

TEST(OptimizerStates, OfMuonAreOneMomentumForHiddenMatrices) {
  EXPECT_EQ(bytes(OptimizerKind::muon, {30, 20}), Bytes{4 * 600});
  EXPECT_EQ(bytes(OptimizerKind::muon, {30, 20}, "fp32", false), Bytes{8 * 600});
  const Catalog catalog = find_model("llama-2-7b").catalog;
  for (const UnitRun& run : catalog.runs) {
    for (const Tensor& tensor : run.tensors) {
      EXPECT_EQ(updated_tensor(run, tensor).hidden_matrix, tensor.name.find("_proj") != std::string::npos)
          << tensor.name;
    }
  }
}

TEST(OptimizerStates, NeverMoreThanAdamWButForTheScalesOfSmallBlocks) {
  test_support::check_property(200, [] {
    Shape shape;
    const auto dims = *rc::gen::inRange(0, 4);
    for (int i = 0; i < dims; ++i) shape.push_back(*rc::gen::inRange<std::uint64_t>(0, 300));
    const Bytes adamw = bytes(OptimizerKind::adamw, shape);
    RC_ASSERT(adamw == Bytes{8 * elements(shape)});
    RC_ASSERT(bytes(OptimizerKind::adam8bit, shape) <= adamw);
    RC_ASSERT(2 * bytes(OptimizerKind::muon, shape) == adamw);
    RC_ASSERT(bytes(OptimizerKind::adafactor, shape) <= adamw);
  });
}

TEST(OptimizerStates, PaperSizesThemAndOurEngineRefusesThemByName) {
  const Catalog catalog = find_model("llama-2-7b").catalog;
  auto setup = setup_of(OptimizerKind::muon, "bf16");
  // 6,476,005,376 elements of hidden matrices with one moment, 262,410,240 others with two, 2 B each
  constexpr std::uint64_t kHidden = 32ULL * (4 * 4096 * 4096 + 3 * 4096 * 11008);
  EXPECT_EQ(report_paper(catalog, setup).ranks.front().device.optimizer_states,
            Bytes{2 * kHidden + 4 * (6'738'415'616 - kHidden)});
  for (const OptimizerKind kind : {OptimizerKind::adafactor, OptimizerKind::adam8bit, OptimizerKind::muon}) {
    setup.optimizer = kind;
    expect_config_error([&] { make_step_plan(catalog, setup); }, "--optimizer", "",
                        std::string(states_of(kind).name) + " cannot be run by engine shardplan");
  }
}

TEST(OptimizerStates, InTheBackwardOnlyTheLargestGradientIsThere) {
  const Catalog catalog = find_model("llama-2-7b").catalog;
  auto setup = setup_of(OptimizerKind::adamw, "bf16-mixed");
  setup.optimizer_in_backward = true;
  EXPECT_EQ(report_paper(catalog, setup).ranks.front().device.gradients, Bytes{2ULL * 32000 * 4096});
  expect_config_error([&] { make_step_plan(catalog, setup); }, "--optimizer-in-backward", "",
                      "--engine fsdp2 or paper");
  setup.accumulation = 2;
  expect_config_error([&] { validate(setup); }, "--optimizer-in-backward", "", "--grad-accum 1");
}

}  // namespace
}  // namespace shardplan
