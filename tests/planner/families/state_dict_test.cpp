// Every family against the state dicts of its own classes: tests/data/families, written by make_goldens.py there.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>

#include "planner/families/family.h"
#include "planner/formats/file.h"
#include "planner/formats/hf_config.h"
#include "planner/formats/tensor_units.h"
#include "tests/support/config_error.h"
#include "tests/support/unit_lines.h"

namespace shardplan {
namespace {

namespace json = boost::json;
using test_support::expect_config_error;
using test_support::unit_lines;

using Lines = std::vector<std::string>;

Lines sorted(Lines lines) {
  std::sort(lines.begin(), lines.end());
  return lines;
}

// What is in `lines` and not in `others`; both sorted.
Lines beside(const Lines& lines, const Lines& others) {
  Lines rest;
  std::set_difference(lines.begin(), lines.end(), others.begin(), others.end(), std::back_inserter(rest));
  return rest;
}

std::string line(const std::string& name, const Tensor& tensor) {
  const char* frozen = tensor.trainable ? "" : " frozen";
  return fmt::format("{} [{}]{}", name, fmt::join(tensor.shape, ","),
                     tensor.tied_to.empty() ? frozen : " = " + tensor.tied_to);
}

Lines listing(const Catalog& catalog) {
  Lines lines;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& t) { lines.push_back(line(name, t)); });
  for (const Tensor& buffer : catalog.buffers) {
    lines.push_back(fmt::format("{} [{}] buffer", buffer.name, fmt::join(buffer.shape, ",")));
  }
  return lines;
}

std::vector<Tensor> untied(const Catalog& catalog) {
  std::vector<Tensor> tensors;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) {
    if (tensor.tied_to.empty()) tensors.push_back({.name = name, .shape = tensor.shape});
  });
  return tensors;
}

class StateDicts : public testing::TestWithParam<std::string> {
 protected:
  json::value file_ = json::parse(read_text(std::string(FAMILY_GOLDENS) + "/" + GetParam()));
};

TEST_P(StateDicts, AreThoseOfTheClass) {
  for (const json::value& row : file_.at("cases").as_array()) {
    SCOPED_TRACE(row.at("name").as_string().c_str());
    const Model model = model_from_hf_config(json::serialize(row.at("config")), "config.json");
    const Lines ours = sorted(listing(model.catalog));
    const Lines theirs = sorted(json::value_to<Lines>(row.at("tensors")));
    EXPECT_GT(theirs.size(), 1U);
    EXPECT_EQ(beside(ours, theirs), Lines{}) << "not in the class";
    EXPECT_EQ(beside(theirs, ours), Lines{}) << "missing";
    EXPECT_NO_THROW(unit_ties(model.catalog));
  }
}

// A model has the same units whether it is read from its config.json or from its safetensors files.
TEST_P(StateDicts, UnitsFollowFromTheNames) {
  for (const json::value& row : file_.at("cases").as_array()) {
    SCOPED_TRACE(row.at("name").as_string().c_str());
    const Model model = model_from_hf_config(json::serialize(row.at("config")), "config.json");
    std::vector<Tensor> tensors = untied(model.catalog);
    std::sort(tensors.begin(), tensors.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
    EXPECT_EQ(unit_lines(catalog_from_tensors("config.json", std::move(tensors))), unit_lines(model.catalog));
  }
}

TEST_P(StateDicts, BadConfigsAreOneErrorWithFileAndKey) {
  std::map<std::string, json::object> configs;
  for (const json::value& row : file_.at("cases").as_array()) {
    configs[json::value_to<std::string>(row.at("name"))] = row.at("config").as_object();
  }
  for (const json::value& row : file_.at("errors").as_array()) {
    SCOPED_TRACE(json::serialize(row));
    json::object config = configs.at(json::value_to<std::string>(row.at("case")));
    if (const json::value* with = row.as_object().if_contains("with")) {
      for (const auto& [key, value] : with->as_object()) config[key] = value;
    }
    if (const json::value* without = row.as_object().if_contains("without")) {
      for (const json::value& key : without->as_array()) config.erase(key.as_string());
    }
    expect_config_error([&] { model_from_hf_config(json::serialize(config), "config.json"); }, "config.json",
                        json::value_to<std::string>(row.at("key")), json::value_to<std::string>(row.at("problem")));
  }
}

std::vector<std::string> files() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(FAMILY_GOLDENS)) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().filename().string());
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(Families, StateDicts, testing::ValuesIn(files()), [](const auto& row) {
  std::string name = std::filesystem::path(row.param).stem().string();
  std::replace_if(name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
  return name;
});

TEST(StateDictsOfAllFamilies, EachFamilyHasACase) {
  std::set<std::string> with_case;
  for (const std::string& name : files()) {
    const json::value file = json::parse(read_text(std::string(FAMILY_GOLDENS) + "/" + name));
    for (const json::value& row : file.at("cases").as_array()) {
      const json::object& config = row.at("config").as_object();
      const char* key = config.contains("model_type") ? "model_type" : "_class_name";
      with_case.insert(json::value_to<std::string>(config.at(key)));
    }
  }
  for (const std::string& family : family_names()) {
    // LitGPT's is made of others' (litgpt_model()): how many parameters it has, and its head, are in programs_test.cpp.
    EXPECT_TRUE(with_case.contains(family) || family == "litgpt") << family;
  }
}

}  // namespace
}  // namespace shardplan
