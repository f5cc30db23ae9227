// Against the golden files (SHARDPLAN_GOLDEN): totals of real models, and their state dicts tensor by tensor.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "planner/formats/file.h"
#include "planner/formats/hf_config.h"
#include "planner/formats/json.h"
#include "planner/formats/presets.h"

namespace shardplan {
namespace {

std::string golden(const std::string& file) {
  const char* folder = std::getenv("SHARDPLAN_GOLDEN");
  return std::string(folder != nullptr ? folder : "SHARDPLAN_GOLDEN is not set") + "/" + file;
}

Model golden_model(const std::string& config) {
  const std::string path = golden(config);
  return model_from_hf_config(read_text(path), path);
}

TEST(FamiliesGolden, TotalsAreExact) {
  std::set<std::string> families;
  const std::string path = golden("parameters.json");
  const JsonDocument document(read_text(path), path);
  for (const JsonView row : document.root().elements()) {
    SCOPED_TRACE(row["name"].as_string());
    families.emplace(row["model_type"].as_string());
    const Model model = golden_model(std::string(row["config"].as_string()));
    EXPECT_EQ(parameter_elements(model.catalog), row["parameters"].as_count());
    if (row["active_parameters"].exists()) {
      EXPECT_EQ(model.catalog.active_parameters, row["active_parameters"].as_count());
    }
    // The preset of that name is the same model, context length aside.
    const auto preset = preset_model(row["name"].as_string());
    ASSERT_TRUE(preset);
    EXPECT_EQ(preset->catalog.runs, model.catalog.runs);
    EXPECT_EQ(preset->catalog.buffers, model.catalog.buffers);
    EXPECT_EQ(preset->modules, model.modules);
  }
  EXPECT_EQ(families.size(), 63U);
}

std::vector<Tensor> listed_tensors(JsonView list, std::string_view kind) {
  std::vector<Tensor> tensors;
  for (const JsonView row : list.elements()) {
    std::vector<JsonView> fields;
    for (const JsonView field : row.elements()) fields.push_back(field);
    if (fields.at(2).as_string() != kind) continue;
    Tensor& tensor = tensors.emplace_back();
    tensor.name = fields.at(0).as_string();
    for (const JsonView dim : fields.at(1).elements()) tensor.shape.push_back(dim.as_count());
    if (fields.size() > 3) tensor.tied_to = fields[3].as_string();
  }
  std::sort(tensors.begin(), tensors.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
  return tensors;
}

TEST(FamiliesGolden, StateDictsAreEqual) {
  std::size_t lists = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden("tensors"))) {
    const std::string path = entry.path().string();
    const std::string config = golden("configs/" + entry.path().filename().string());
    const JsonDocument config_document(read_text(config), config);
    SCOPED_TRACE(path);
    const JsonDocument document(read_text(path), path);
    const std::vector<Tensor> expected = listed_tensors(document.root()["tensors"], "param");
    const Catalog catalog = model_from_hf_config(config_document.root()).catalog;
    std::vector<Tensor> actual;
    for_each_tensor(catalog, [&](const std::string& whole, Tensor tensor) {
      tensor.name = whole;
      tensor.trainable = true;  // the lists do not say
      actual.push_back(std::move(tensor));
    });
    std::sort(actual.begin(), actual.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
    // Differences alone: a whole list is thousands of lines.
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i) EXPECT_EQ(actual[i], expected[i]) << actual[i].name;
    EXPECT_EQ(catalog.buffers.size(), listed_tensors(document.root()["tensors"], "buffer").size());
    ++lists;
  }
  EXPECT_EQ(lists, 35U);
}

}  // namespace
}  // namespace shardplan
