#include "planner/formats/read_model.h"

#include <gtest/gtest.h>

#include "tests/support/config_error.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temporary_folder.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;
using test_support::TemporaryFolder;
using test_support::write_safetensors;

constexpr const char* kConfig =
    R"({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 100})";

TEST(ReadModel, DispatchesOnWhatThePathIs) {
  const TemporaryFolder folder;
  folder.write("tiny/config.json", kConfig);
  write_safetensors(folder.path("tiny/model.safetensors"), {{"other.weight", DType::f32, {2}}});
  folder.write("renamed.json", kConfig);
  folder.write("list.json", R"({"schema": "shardplan.tensors/1", "tensors": [{"name": "a", "shape": [3]}]})");
  folder.write("named.json",
               R"({"schema": "shardplan.tensors/1", "name": "n", "tensors": [{"name": "a", "shape": [3]}]})");
  folder.write("bare/model.safetensors.index.json", R"({"weight_map": {"w.x": "a.safetensors"}})");
  write_safetensors(folder.path("bare/a.safetensors"), {{"w.x", DType::f32, {5}}});

  struct Case {
    const char* path;
    const char* name;
    const char* family;
    std::uint64_t tensors;
  };
  const Case cases[] = {
      {"tiny", "tiny", "llama", 30},  // the config.json, though there are safetensors too
      {"tiny/", "tiny", "llama", 30},
      {"tiny/config.json", "tiny", "llama", 30},
      {"renamed.json", "renamed", "llama", 30},
      {"tiny/model.safetensors", "model.safetensors", "tensors", 1},
      {"list.json", "list", "tensors", 1},
      {"named.json", "n", "tensors", 1},
      {"bare", "bare", "tensors", 1},
      {"bare/a.safetensors", "a.safetensors", "tensors", 1},
      {"bare/model.safetensors.index.json", "model.safetensors.index.json", "tensors", 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.path);
    for (const Model& model : {read_model(folder.path(c.path)), find_model(folder.path(c.path))}) {
      EXPECT_EQ(model.catalog.name, c.name);
      EXPECT_EQ(model.catalog.family, c.family);
      EXPECT_EQ(tensor_count(model.catalog), c.tensors);
    }
  }
}

TEST(ReadModel, ErrorsNameTheFile) {
  const TemporaryFolder folder;
  const std::string bad = folder.write("bad/config.json", R"({"model_type": "llama", "hidden_size": -1})");
  expect_config_error([&] { read_model(folder.path("bad")); }, bad, "hidden_size",
                      "expected a positive integer, found -1");
  expect_config_error([&] { find_model(folder.path("bad")); }, bad, "hidden_size", "found -1");
  const std::string broken = folder.write("x.safetensors", "short");
  expect_config_error([&] { read_model(broken); }, broken, "", "is 5 bytes long");
  EXPECT_THROW(read_model(folder.path("absent.json")), IoError);
  EXPECT_THROW(find_model(folder.path("absent.json")), IoError);
  EXPECT_THROW(find_model(folder.path("absent.safetensors")), IoError);
}

TEST(FindModel, PresetsComeFirstAndTyposAreExplained) {
  EXPECT_EQ(find_model("llama-2-7b").catalog.name, "llama-2-7b");
  expect_config_error([] { find_model("llama-2-7"); }, "llama-2-7", "",
                      "is no preset and no file; the nearest presets are llama-2-7b, llama-2-70b");
}

}  // namespace
}  // namespace shardplan
