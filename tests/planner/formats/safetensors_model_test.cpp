#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>

#include "planner/formats/hf_config.h"
#include "planner/formats/presets.h"
#include "planner/formats/safetensors.h"
#include "tests/support/config_error.h"
#include "tests/support/property.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temporary_folder.h"

namespace shardplan {
namespace {

using test_support::check_property;
using test_support::expect_config_error;
using test_support::stored_tensors;
using test_support::StoredTensor;
using test_support::TemporaryFolder;
using test_support::write_safetensors;
using test_support::write_sharded_safetensors;

// The catalog as its files can give it: no ties, tensors of a unit by name.
Catalog as_stored(Catalog catalog) {
  for (UnitRun& run : catalog.runs) {
    std::erase_if(run.tensors, [](const Tensor& tensor) { return !tensor.tied_to.empty(); });
    std::sort(run.tensors.begin(), run.tensors.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
  }
  return catalog;
}

bool has_note(const Model& model, const std::string& text) {
  return std::any_of(model.catalog.notes.begin(), model.catalog.notes.end(),
                     [&](const std::string& note) { return note.find(text) != std::string::npos; });
}

TEST(SafetensorsModel, HasTheUnitsOfTheConfig) {
  for (const char* name : {"gpt2", "smollm-360m", "tinyllama-1.1b"}) {
    SCOPED_TRACE(name);
    const Model model = preset_model(name).value();
    const auto stored = stored_tensors(model.catalog, DType::bf16);
    const TemporaryFolder one;
    write_safetensors(one.path("model.safetensors"), stored);
    EXPECT_EQ(model_from_safetensors(one.path("model.safetensors")).catalog.runs, as_stored(model.catalog).runs);
    // Shards of 7 tensors cut blocks anywhere.
    const TemporaryFolder many;
    write_sharded_safetensors(many.path(), stored, 7);
    EXPECT_EQ(model_from_safetensors(many.path()).catalog.runs, as_stored(model.catalog).runs);
    EXPECT_EQ(model_from_safetensors(many.path("model.safetensors.index.json")).catalog.runs,
              as_stored(model.catalog).runs);
    std::filesystem::remove(many.path("model.safetensors.index.json"));
    const Model without_index = model_from_safetensors(many.path());
    EXPECT_EQ(without_index.catalog.runs, as_stored(model.catalog).runs);
    EXPECT_EQ(without_index.catalog.family, "tensors");
    EXPECT_TRUE(has_note(without_index, "a tied head is not in such files"));
  }
}

TEST(SafetensorsModel, QuantisedTensorsKeepTheirTypeAndAreFrozen) {
  const TemporaryFolder folder;
  write_safetensors(
      folder.path("m.safetensors"),
      {{"a", DType::f16, {2}}, {"b", DType::u8, {2}}, {"c", DType::f8_e4m3, {2}}, {"d", DType::f64, {2}}});
  const Catalog catalog = model_from_safetensors(folder.path("m.safetensors")).catalog;
  const auto& tensors = catalog.runs.at(0).tensors;
  ASSERT_EQ(tensors.size(), 4U);
  EXPECT_EQ(tensors[0], (Tensor{"a", {2}, {}, true, {}}));
  EXPECT_EQ(tensors[1], (Tensor{"b", {2}, DType::u8, false, {}}));
  EXPECT_EQ(tensors[2], (Tensor{"c", {2}, DType::f8_e4m3, false, {}}));
  EXPECT_EQ(tensors[3], (Tensor{"d", {2}, {}, true, {}}));
}

TEST(SafetensorsModel, LeavesOutSavedBuffersAndSaysSo) {
  const Model gpt2 = preset_model("gpt2").value();
  auto stored = stored_tensors(gpt2.catalog, DType::f32);
  for (int i = 0; i < 12; ++i) {
    stored.push_back({fmt::format("transformer.h.{}.attn.bias", i), DType::f32, {1, 1, 1024, 1024}});
    stored.push_back({fmt::format("transformer.h.{}.attn.masked_bias", i), DType::f32, {}});
  }
  const TemporaryFolder folder;
  write_safetensors(folder.path("model.safetensors"), stored);
  const Model model = model_from_safetensors(folder.path());
  EXPECT_EQ(model.catalog.runs, as_stored(gpt2.catalog).runs);
  EXPECT_TRUE(has_note(model, "buffers that are no parameters are not in these figures: 24, "));
}

TEST(SafetensorsModel, AnIndexMustTellTheTruth) {
  const TemporaryFolder folder;
  write_safetensors(folder.path("one.safetensors"), {{"a.w", DType::f32, {2}}, {"b.w", DType::f32, {2}}});
  write_safetensors(folder.path("two.safetensors"), {{"c.w", DType::f32, {2}}});
  const auto index = [&](const std::string& text) { return folder.write("m.safetensors.index.json", text); };
  const std::string path = folder.path("m.safetensors.index.json");
  struct Case {
    const char* text;
    std::string source;
    const char* key;
    const char* problem;
  };
  const Case cases[] = {
      {R"({"weight_map": {"a.w": "three.safetensors"}})", path, "weight_map.a.w",
       "is said to be in 'three.safetensors', which does not exist"},
      {R"({"weight_map": {"a.w": "one.safetensors", "b.w": "one.safetensors", "c.w": "one.safetensors"}})", path,
       "weight_map.c.w", "is said to be in 'one.safetensors', which has no tensor of this name"},
      {R"({"weight_map": {"a.w": "one.safetensors", "c.w": "two.safetensors"}})", folder.path("one.safetensors"), "b.w",
       "is not in this file according to"},
      {R"({"weight_map": {"a.w": 1}})", path, "weight_map.a.w", "expected a string, found 1"},
      {R"({"weight_map": {"a.w": "../one.safetensors"}})", path, "weight_map.a.w",
       "expected the name of a file beside the index"},
      {R"({"weight_map": {"a.w": "/etc/passwd"}})", path, "weight_map.a.w",
       "expected the name of a file beside the index"},
      {R"({"weight_map": {"a.w": ""}})", path, "weight_map.a.w", "expected the name of a file beside the index"},
      {R"({"weight_map": {"a.w": "one.safetensors", "a.w": "one.safetensors"}})", path, "weight_map.a.w",
       "appears twice"},
      {R"({"weight_map": {}})", path, "weight_map", "names no tensor"},
      {R"({"weight_map": []})", path, "weight_map", "expected an object"},
      {R"({"metadata": {}})", path, "weight_map", "but the key is missing"},
      {R"({"metadata": {"total_size": "x"}, "weight_map": {"c.w": "two.safetensors"}})", path, "metadata.total_size",
       "expected a non-negative integer"},
      {R"([])", path, "", "expected an object"},
      {R"({"weight_map")", path, "", "the text ends too early"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    index(c.text);
    expect_config_error([&] { model_from_safetensors(path); }, c.source, c.key, c.problem);
    expect_config_error([&] { model_from_safetensors(folder.path()); }, c.source, c.key, c.problem);
  }
  index(R"({"metadata": {"total_size": 7}, "weight_map": {"a.w": "one.safetensors", "b.w": "one.safetensors"}})");
  EXPECT_TRUE(has_note(model_from_safetensors(path), "the index says 7 bytes, its files hold 16"));
}

TEST(SafetensorsModel, FoldersThatAreNotOneModel) {
  const TemporaryFolder folder;
  expect_config_error([&] { model_from_safetensors(folder.path()); }, folder.path(), "",
                      "neither a config.json nor safetensors files");
  write_safetensors(folder.path("a.safetensors"), {{"w.x", DType::f32, {2}}});
  write_safetensors(folder.path("b.safetensors"), {{"w.x", DType::f32, {2}}});
  expect_config_error([&] { model_from_safetensors(folder.path()); }, folder.path(), "w.x", "comes twice");
  folder.write("a.safetensors.index.json", "{}");
  folder.write("b.safetensors.index.json", "{}");
  expect_config_error([&] { model_from_safetensors(folder.path()); }, folder.path(), "", "more than one index");
  EXPECT_THROW(model_from_safetensors(folder.path("absent")), IoError);
  const TemporaryFolder empty;
  write_safetensors(empty.path("m.safetensors"), {});
  expect_config_error([&] { model_from_safetensors(empty.path("m.safetensors")); }, empty.path("m.safetensors"), "",
                      "has no parameters");
}

// A model that a file can hold: an embedding, stacks of blocks that may differ, a head.
rc::Gen<Catalog> any_catalog() {
  return rc::gen::exec([] {
    const auto dim = rc::gen::inRange<std::uint64_t>(0, 5);
    const auto any_tensor = [&](std::string name) {
      Tensor tensor{.name = std::move(name), .shape = {*dim, *dim}, .dtype = {}, .tied_to = {}};
      if (*rc::gen::inRange(0, 4) == 0) {
        tensor.dtype = DType::i8;
        tensor.trainable = false;
      }
      return tensor;
    };
    CatalogBuilder builder("file", "tensors");
    builder.begin_unit("embedding");
    builder.add(any_tensor("model.embed_tokens.weight"));
    std::uint64_t number = 0;
    const int runs = *rc::gen::inRange(1, 4);
    for (int run = 0; run < runs; ++run) {
      std::vector<Tensor> tensors;
      const int count = *rc::gen::inRange(1, 6);
      for (int i = 0; i < count; ++i) tensors.push_back(any_tensor(fmt::format("part{}.weight", i)));
      const auto units = *rc::gen::inRange<std::uint64_t>(1, 13);
      builder.add_run("model.layers", number, units, tensors);
      number += units;
    }
    builder.begin_unit("head");
    builder.add(any_tensor("lm_head.weight"));
    builder.add(any_tensor("model.norm.weight"));
    return builder.finish();
  });
}

TEST(SafetensorsModel, ReadsBackAnyCatalog) {
  check_property(60, [] {
    const Catalog catalog = *any_catalog();
    const auto stored = stored_tensors(catalog, DType::bf16);
    const TemporaryFolder folder;
    write_safetensors(folder.path("model.safetensors"), stored);
    RC_ASSERT(model_from_safetensors(folder.path()).catalog.runs == catalog.runs);
    std::filesystem::remove(folder.path("model.safetensors"));
    write_sharded_safetensors(folder.path(), stored, *rc::gen::inRange<std::size_t>(1, 20));
    RC_ASSERT(model_from_safetensors(folder.path()).catalog.runs == catalog.runs);
  });
}

// As many tensors as the largest mixtures of experts have.
TEST(SafetensorsModel, ReadsFiftyThousandTensors) {
  std::vector<StoredTensor> tensors;
  for (int layer = 0; layer < 60; ++layer) {
    for (int expert = 0; expert < 256; ++expert) {
      for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
        StoredTensor& tensor = tensors.emplace_back();
        tensor.name = fmt::format("model.layers.{}.mlp.experts.{}.{}.weight", layer, expert, part);
        tensor.dtype = DType::bf16;
        tensor.shape = {16, 16};
      }
    }
  }
  const TemporaryFolder folder;
  write_safetensors(folder.path("model.safetensors"), tensors);
  const Catalog catalog = model_from_safetensors(folder.path()).catalog;
  ASSERT_EQ(catalog.runs.size(), 1U);
  EXPECT_EQ(catalog.runs[0].count, 60U);
  EXPECT_EQ(tensor_count(catalog), 46'080U);
}

}  // namespace
}  // namespace shardplan
