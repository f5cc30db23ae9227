// Against the golden files (SHARDPLAN_GOLDEN): totals of real models, and their state dicts tensor by tensor.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "planner/families/family.h"
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
    if (find_family(row["model_type"].as_string()) == nullptr) continue;
    SCOPED_TRACE(row["name"].as_string());
    families.emplace(row["model_type"].as_string());
    const Model model = golden_model(std::string(row["config"].as_string()));
    EXPECT_EQ(parameter_elements(model.catalog), row["parameters"].as_count());
    // The preset of that name is the same model, context length aside.
    const auto preset = preset_model(row["name"].as_string());
    ASSERT_TRUE(preset);
    EXPECT_EQ(preset->catalog.runs, model.catalog.runs);
  }
  for (const std::string& family : family_names()) EXPECT_TRUE(families.contains(family)) << family;
}

TEST(FamiliesGolden, StateDictsAreEqual) {
  for (const char* name : {"llama-2-7b", "llama-3.1-8b", "gpt2"}) {
    SCOPED_TRACE(name);
    const std::string path = golden(std::string("tensors/") + name + ".json");
    const JsonDocument document(read_text(path), path);
    std::vector<Tensor> expected;
    for (const JsonView row : document.root()["tensors"].elements()) {
      std::vector<JsonView> fields;
      for (const JsonView field : row.elements()) fields.push_back(field);
      if (fields.at(2).as_string() != "param") continue;
      Tensor& tensor = expected.emplace_back();
      tensor.name = fields.at(0).as_string();
      for (const JsonView dim : fields.at(1).elements()) tensor.shape.push_back(dim.as_count());
      if (fields.size() > 3) tensor.tied_to = fields[3].as_string();
    }
    std::vector<Tensor> actual;
    for_each_tensor(golden_model(std::string("configs/") + name + ".json").catalog,
                    [&](const std::string& whole, Tensor tensor) {
                      tensor.name = whole;
                      actual.push_back(std::move(tensor));
                    });
    EXPECT_EQ(actual, expected);
    EXPECT_GT(expected.size(), 100U);
  }
}

}  // namespace
}  // namespace shardplan
