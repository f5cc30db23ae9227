#include "planner/formats/presets.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

TEST(Presets, EachHasExactlyItsParametersAndNothingAssumed) {
  std::set<std::string> names;
  for (const Preset& preset : presets()) {
    SCOPED_TRACE(preset.name);
    EXPECT_TRUE(names.insert(preset.name).second);
    const Model model = preset_model(preset.name).value();
    EXPECT_EQ(parameter_elements(model.catalog), preset.parameters);
    EXPECT_LE(trainable_elements(model.catalog), preset.parameters);
    EXPECT_EQ(model.catalog.name, preset.name);
    EXPECT_EQ(model.catalog.family, preset.model_type);
    for (const std::string& note : model.catalog.notes) EXPECT_TRUE(note.starts_with("buffers that")) << note;
    EXPECT_NE(preset.source, "");
    EXPECT_GE(unit_count(model.catalog), 2U);
    EXPECT_NO_THROW(unit_ties(model.catalog));
  }
  EXPECT_GE(names.size(), 137U);
}

// Published figures, written out here so that one mistake in the table cannot pass.
TEST(Presets, KnowsTheModelsEveryoneKnows) {
  const std::pair<const char*, std::uint64_t> known[] = {
      {"gpt2", 124'439'808},           {"gpt2-xl", 1'557'611'200},      {"llama-2-7b", 6'738'415'616},
      {"llama-2-70b", 68'976'648'192}, {"llama-3.1-8b", 8'030'261'248}, {"llama-3.1-405b", 405'853'388'800}};
  for (const auto& [name, parameters] : known) {
    EXPECT_EQ(parameter_elements(preset_model(name).value().catalog), parameters) << name;
  }
}

TEST(Presets, AreFoundByEitherNameInAnyCase) {
  EXPECT_EQ(preset_model("Llama-2-7B"), preset_model("llama-2-7b"));
  EXPECT_EQ(preset_model("meta-llama/Llama-2-7b-hf"), preset_model("llama-2-7b"));
  EXPECT_FALSE(preset_model("llama-2"));
  EXPECT_FALSE(preset_model(""));
}

TEST(Presets, UnknownOnesListNearNames) {
  expect_config_error([] { require_preset_model("lama-2-7b"); }, "lama-2-7b", "",
                      "the nearest presets are llama-2-7b, ");
  expect_config_error([] { require_preset_model("gpt2xl"); }, "gpt2xl", "", "gpt2-xl");
}

}  // namespace
}  // namespace shardplan
