#include "planner/setup.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "planner/step_plan.h"
#include "tests/support/catalogs.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

Setup setup_of(int stage, std::uint64_t world_size, std::uint64_t replicate = 1) {
  Setup setup;
  setup.stage = stage;
  setup.world_size = world_size;
  setup.replicate = replicate;
  return setup;
}

constexpr Placement kReplicated = Placement::replicated;
constexpr Placement kSharded = Placement::sharded;

TEST(Stages, AreThreePlacements) {
  EXPECT_EQ(placements_of_stage(0), (Placements{kReplicated, kReplicated, kReplicated}));
  EXPECT_EQ(placements_of_stage(1), (Placements{kReplicated, kReplicated, kSharded}));
  EXPECT_EQ(placements_of_stage(2), (Placements{kReplicated, kSharded, kSharded}));
  EXPECT_EQ(placements_of_stage(3), (Placements{kSharded, kSharded, kSharded}));
  for (const int stage : {-1, 4, 1000, INT32_MIN, INT32_MAX}) EXPECT_THROW(placements_of_stage(stage), ConfigError);
}

TEST(SetupNames, AreThoseOfTheFlags) {
  EXPECT_EQ(name(Transport::direct), "direct");
  EXPECT_EQ(name(Transport::staged), "staged");
  EXPECT_EQ(name(Reduction::canonical), "canonical");
  EXPECT_EQ(name(Reduction::fast), "fast");
  EXPECT_EQ(name(Cadence::micro_batch), "micro_batch");
  EXPECT_EQ(name(Cadence::step), "step");
  EXPECT_EQ(name(Recompute::none), "none");
  EXPECT_EQ(name(Recompute::full), "full");
}

TEST(Setups, ResolveWhatIsLeftOpen) {
  for (const int stage : {0, 1, 2, 3}) {
    auto setup = setup_of(stage, 24, 3);
    EXPECT_EQ(resolved_cadence(setup), stage < 2 ? Cadence::step : Cadence::micro_batch);
    EXPECT_EQ(shard_count(setup), 8U);
    EXPECT_EQ(resolved_reduction_group(setup), 8U);
    setup.cadence = Cadence::micro_batch;
    EXPECT_EQ(resolved_cadence(setup), Cadence::micro_batch);
    EXPECT_NO_THROW(validate(setup));
    setup.replicate = 1;
    setup.reduction_group = 4;
    EXPECT_EQ(resolved_reduction_group(setup), 4U);
    EXPECT_NO_THROW(validate(setup));
  }
  EXPECT_EQ(resolved_reduction_group(setup_of(0, 7)), 7U);
}

TEST(Setups, DefaultsAndAnySetupOfTheGeneratorAreValid) {
  EXPECT_NO_THROW(validate(setup_of(0, 1)));
  test_support::check_property(500, [] { validate(*test_support::any_setup()); });
}

// `change` makes a valid setup bad; the error is about `flag` and says the words.
template <typename Change>
void expect_refused(const char* flag, std::initializer_list<const char*> words, Change change) {
  auto setup = setup_of(2, 8);
  ASSERT_NO_THROW(validate(setup));
  change(setup);
  try {
    validate(setup);
    ADD_FAILURE() << flag << ": no error";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.source(), flag) << error.what();
    for (const char* word : words) EXPECT_NE(error.problem().find(word), std::string::npos) << error.what();
  }
}

TEST(SetupErrors, SayWhichFlagAndWhatWasExpected) {
  expect_refused("--gpus", {}, [](auto& s) { s.world_size = 0; });
  expect_refused("--replicate", {}, [](auto& s) { s.replicate = 0; });
  expect_refused("--replicate", {"8", "3"}, [](auto& s) { s.replicate = 3; });
  expect_refused("--replicate", {"8", "16"}, [](auto& s) { s.replicate = 16; });
  expect_refused("--zero", {"-1"}, [](auto& s) { s.stage = -1; });
  expect_refused("--zero", {"4"}, [](auto& s) { s.stage = 4; });
  expect_refused("--grad-accum", {}, [](auto& s) { s.accumulation = 0; });
  expect_refused("--cadence", {"stage 2", "micro_batch"}, [](auto& s) { s.cadence = Cadence::step; });
  expect_refused("--reduction-group", {"0"}, [](auto& s) { s.reduction_group = 0; });
  expect_refused("--reduction-group", {"3", "8"}, [](auto& s) { s.reduction_group = 3; });
  expect_refused("--reduction-group", {"8"}, [](auto& s) {
    s.world_size = 16;
    s.replicate = 2;
    s.reduction_group = 4;
  });
  expect_refused("--reduction-group", {"16", "8"}, [](auto& s) { s.reduction_group = 16; });
}

// Gradients and optimizer states are floats of 16 bits or more.
TEST(SetupErrors, RefuseDtypesThatCannotBeTrained) {
  const Catalog catalog = test_support::uniform_catalog(2, 100);
  ASSERT_NO_THROW(make_step_plan(catalog, setup_of(2, 8)));
  for (const auto member : {&Policy::parameter, &Policy::gradient, &Policy::gradient_accumulator, &Policy::wire,
                            &Policy::first_moment, &Policy::second_moment}) {
    for (const DType dtype : {DType::i8, DType::nf4, DType::f8_e4m3, DType::i32}) {
      auto setup = setup_of(2, 8);
      setup.policy.*member = dtype;
      try {
        make_step_plan(catalog, setup);
        ADD_FAILURE() << "no error for " << name(dtype);
      } catch (const ConfigError& error) {
        EXPECT_NE(error.problem().find(name(dtype)), std::string::npos) << error.what();
      }
    }
  }
  auto setup = setup_of(2, 8);
  setup.policy.master = DType::i8;
  EXPECT_THROW(make_step_plan(catalog, setup), ConfigError);
}

}  // namespace
}  // namespace shardplan
