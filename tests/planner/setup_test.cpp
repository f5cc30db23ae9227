#include "planner/setup.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/error.h"
#include "tests/support/catalogs.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

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
  EXPECT_EQ(name(kReplicated), "replicated");
  EXPECT_EQ(name(kSharded), "sharded");
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
    Setup setup{.world_size = 24, .replicate = 3, .stage = stage};
    EXPECT_EQ(resolved_cadence(setup), stage < 2 ? Cadence::step : Cadence::micro_batch);
    EXPECT_EQ(shard_count(setup), 8U);
    EXPECT_EQ(resolved_reduction_group(setup), 8U);
    setup.cadence = Cadence::micro_batch;
    setup.reduction_group = 4;
    EXPECT_EQ(resolved_cadence(setup), Cadence::micro_batch);
    EXPECT_EQ(resolved_reduction_group(setup), 4U);
    EXPECT_NO_THROW(validate(setup));
  }
  EXPECT_EQ(resolved_reduction_group(Setup{.world_size = 7}), 7U);
}

TEST(Setups, DefaultsAndAnySetupOfTheGeneratorAreValid) {
  EXPECT_NO_THROW(validate(Setup{}));
  test_support::check_property(500, [] { validate(*test_support::any_setup()); });
}

// `change` makes a valid setup bad; the error is about `flag` and says the words.
template <typename Change>
void expect_refused(const char* flag, std::initializer_list<const char*> words, Change change) {
  Setup setup{.world_size = 8, .stage = 2};
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
  expect_refused("--gpus", {}, [](Setup& s) { s.world_size = 0; });
  expect_refused("--replicate", {}, [](Setup& s) { s.replicate = 0; });
  expect_refused("--replicate", {"8", "3"}, [](Setup& s) { s.replicate = 3; });
  expect_refused("--replicate", {"8", "16"}, [](Setup& s) { s.replicate = 16; });
  expect_refused("--zero", {"-1"}, [](Setup& s) { s.stage = -1; });
  expect_refused("--zero", {"4"}, [](Setup& s) { s.stage = 4; });
  expect_refused("--grad-accum", {}, [](Setup& s) { s.accumulation = 0; });
  expect_refused("--cadence", {"step"}, [](Setup& s) { s.cadence = Cadence::step; });
  expect_refused("--reduction-group", {"0"}, [](Setup& s) { s.reduction_group = 0; });
  expect_refused("--reduction-group", {"3", "8"}, [](Setup& s) { s.reduction_group = 3; });
  expect_refused("--reduction-group", {"16", "8"}, [](Setup& s) { s.reduction_group = 16; });
}

// Gradients are floats of 16 bits or more, and so is everything that adds them up.
TEST(SetupErrors, RefuseDtypesThatCannotBeTrained) {
  expect_refused("--grad-dtype", {"int8"}, [](Setup& s) { s.policy.gradient = DType::i8; });
  expect_refused("--grad-accum-dtype", {"fp8-e4m3"}, [](Setup& s) { s.policy.gradient_accumulator = DType::f8_e4m3; });
  expect_refused("--wire-dtype", {"int32"}, [](Setup& s) { s.policy.wire = DType::i32; });
  expect_refused("--master-dtype", {"int8"}, [](Setup& s) { s.policy.master = DType::i8; });
}

}  // namespace
}  // namespace shardplan
