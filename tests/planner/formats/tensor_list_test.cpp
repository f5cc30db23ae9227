#include "planner/formats/tensor_list.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

Model parse(const std::string& tensors, const std::string& more = "") {
  return model_from_tensor_list(fmt::format(R"({{"schema": "shardplan.tensors/1"{}, "tensors": [{}]}})", more, tensors),
                                "list.json");
}

TEST(TensorList, ReadsEverythingItDocuments) {
  const Model model = parse(R"({"name": "embed.weight", "shape": [32000, 512]},
      {"name": "blocks.0.proj.weight", "shape": [512, 512], "dtype": "u8", "trainable": false},
      {"name": "blocks.0.scale.weight", "shape": [], "dtype": "bf16"},
      {"name": "norm.weight", "shape": [512], "trainable": false},
      {"name": "head.weight", "shape": [32000, 512], "tied_to": "embed.weight"})",
                            R"(, "name": "my-model")");
  const Catalog& catalog = model.catalog;
  EXPECT_EQ(catalog.name, "my-model");
  EXPECT_EQ(catalog.family, "tensors");
  ASSERT_EQ(catalog.runs.size(), 3U);
  EXPECT_EQ(catalog.runs[0].tensors, (std::vector<Tensor>{{"embed.weight", {32000, 512}, {}, true, {}}}));
  EXPECT_EQ(catalog.runs[1].tensors, (std::vector<Tensor>{{"proj.weight", {512, 512}, DType::u8, false, {}},
                                                          {"scale.weight", {}, DType::bf16, true, {}}}));
  EXPECT_EQ(catalog.runs[2].tensors, (std::vector<Tensor>{{"norm.weight", {512}, {}, false, {}},
                                                          {"head.weight", {32000, 512}, {}, true, "embed.weight"}}));
  EXPECT_EQ(parameter_elements(catalog), 32000U * 512 + 512 * 512 + 1 + 512);
  EXPECT_EQ(unit_ties(catalog), (std::vector<UnitTie>{{2, 0}}));
}

TEST(TensorList, TypesWithoutGradientsAreFrozenUnlessSaid) {
  EXPECT_FALSE(parse(R"({"name": "a", "shape": [1], "dtype": "int8"})").catalog.runs[0].tensors[0].trainable);
  EXPECT_TRUE(parse(R"({"name": "a", "shape": [1], "dtype": "float32"})").catalog.runs[0].tensors[0].trainable);
}

TEST(TensorList, UnitsAsGiven) {
  const Model model =
      parse(R"({"name": "in.w", "shape": [4], "unit": "stem"}, {"name": "b.0.w", "shape": [2], "unit": "b.0"},
      {"name": "b.1.w", "shape": [2], "unit": "b.1"}, {"name": "b.2.w", "shape": [2], "unit": "pair.2"},
      {"name": "out.w", "shape": [4], "unit": "pair.2"}, {"name": "z", "shape": [4], "unit": "b.01"})");
  const auto& runs = model.catalog.runs;
  ASSERT_EQ(runs.size(), 4U);
  EXPECT_EQ(runs[0].name, "stem");
  EXPECT_EQ(runs[1], (UnitRun{"b", true, 0, 2, {{"w", {2}, {}, true, {}}}}));
  // Not all of its tensors are named below it: a unit of its own, with whole names.
  EXPECT_EQ(runs[2], (UnitRun{"pair.2", false, 0, 1, {{"b.2.w", {2}, {}, true, {}}, {"out.w", {4}, {}, true, {}}}}));
  EXPECT_EQ(runs[3].name, "b.01");
}

TEST(TensorList, RefusesWhatItDoesNotSay) {
  struct Case {
    const char* tensors;
    const char* key;
    const char* problem;
  };
  const Case cases[] = {
      {"", "tensors", "expected at least one tensor"},
      {"3", "tensors[0]", "expected an object, found 3"},
      {R"({"shape": [1]})", "tensors[0].name", "but the key is missing"},
      {R"({"name": "", "shape": [1]})", "tensors[0].name", "not empty"},
      {R"({"name": 5, "shape": [1]})", "tensors[0].name", "expected a string, found 5"},
      {R"({"name": "a"})", "tensors[0].shape", "expected an array, but the key is missing"},
      {R"({"name": "a", "shape": [1, -2]})", "tensors[0].shape[1]", "expected a non-negative integer, found -2"},
      {R"({"name": "a", "shape": [1.5]})", "tensors[0].shape[0]", "found 1.5"},
      {R"({"name": "a", "shape": [1], "dtype": "bf17"})", "tensors[0].dtype", "expected a dtype"},
      {R"({"name": "a", "shape": [1], "dtype": null})", "tensors[0].dtype", "found null"},
      {R"({"name": "a", "shape": [1], "trainable": 1})", "tensors[0].trainable", "expected true or false, found 1"},
      {R"({"name": "a", "shape": [1], "dtype": "u8", "trainable": true})", "tensors[0].trainable",
       "uint8 has no gradients"},
      {R"({"name": "a", "shape": [1], "shapes": [1]})", "tensors[0].shapes", "is not a key of shardplan.tensors/1"},
      {R"({"name": "a", "shape": [1], "name": "b"})", "tensors[0].name", "appears twice"},
      {R"({"name": "a", "shape": [1]}, {"name": "a", "shape": [1]})", "a", "comes twice"},
      {R"({"name": "a", "shape": [1], "unit": "u"}, {"name": "a", "shape": [1], "unit": "u"})", "a", "comes twice"},
      {R"({"name": "a", "shape": [1], "unit": "u"}, {"name": "b", "shape": [1]})", "b", "has no unit, but others have"},
      {R"({"name": "a", "shape": [1], "unit": "u"}, {"name": "b", "shape": [1], "unit": "v"}, {"name": "c", "shape": [1], "unit": "u"})",
       "c", "unit 'u' was left before"},
      {R"({"name": "a", "shape": [1], "tied_to": "b"})", "a", "not in the catalog"},
      {R"({"name": "a", "shape": [1], "tied_to": "a"})", "a", "is tied to 'a'"},
      {R"({"name": "a", "shape": [1], "tied_to": "b"}, {"name": "b", "shape": [1]})", "a", "which comes later"},
      {R"({"name": "a", "shape": [1]}, {"name": "b", "shape": [2], "tied_to": "a"})", "b", "which has another shape"},
      {R"({"name": "a", "shape": [1]}, {"name": "b", "shape": [1], "tied_to": "a"}, {"name": "c", "shape": [1], "tied_to": "b"})",
       "c", "which is itself tied"},
      {R"({"name": "a", "shape": [4294967296, 4294967296]})", "a", "more elements than 64 bits can count"},
      {R"({"name": "a", "shape": [18446744073709551615], "unit": "u"}, {"name": "b", "shape": [1], "unit": "u"})", "b",
       "more elements than 64 bits can count"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.tensors);
    expect_config_error([&] { parse(c.tensors); }, "list.json", c.key, c.problem);
  }
  const std::tuple<const char*, const char*, const char*> documents[] = {
      {R"({"tensors": []})", "schema", "expected \"shardplan.tensors/1\", but the key is missing"},
      {R"({"schema": "shardplan.tensors/2", "tensors": []})", "schema", "found \"shardplan.tensors/2\""},
      {R"({"schema": "shardplan.tensors/1"})", "tensors", "expected an array, but the key is missing"},
      {R"({"schema": "shardplan.tensors/1", "tensor": []})", "tensor", "is not a key"},
      {R"({"schema": "shardplan.tensors/1", "name": 3, "tensors": [{"name": "a", "shape": []}]})", "name",
       "expected a string"},
      {R"([])", "", "expected an object, found an array"},
      {R"({)", "", "ends too early"},
  };
  for (const auto& [text, key, problem] : documents) {
    SCOPED_TRACE(text);
    expect_config_error([&, text = text] { model_from_tensor_list(text, "list.json"); }, "list.json", key, problem);
  }
}

}  // namespace
}  // namespace shardplan
