// Adapters against peft itself (tests/data/lora), quantised storage against its definition.
#include "planner/lora.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "planner/formats/hf_config.h"
#include "planner/formats/read_model.h"
#include "planner/report.h"
#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

// A test's own scope has a function of the name Setup.
Setup four_ranks(int stage) {
  Setup setup;
  setup.stage = stage;
  setup.world_size = 4;
  return setup;
}

std::vector<std::string> words(const boost::json::value& value) {
  if (value.is_string()) return {std::string(value.as_string())};
  std::vector<std::string> texts;
  for (const auto& text : value.as_array()) texts.emplace_back(text.as_string());
  return texts;
}

// "name [shape]" of each.
std::set<std::string> trainable_of(const Catalog& catalog) {
  std::set<std::string> tensors;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) {
    if (tensor.trainable) tensors.insert(fmt::format("{} [{}]", name, fmt::join(tensor.shape, ", ")));
  });
  return tensors;
}

std::vector<std::string> without(const std::set<std::string>& these, const std::set<std::string>& those) {
  std::vector<std::string> rest;
  std::set_difference(these.begin(), these.end(), those.begin(), those.end(), std::back_inserter(rest));
  return rest;
}

TEST(Lora, AddsWhatPeftAdds) {
  std::ifstream file(LORA_GOLDENS "/peft.json");
  ASSERT_TRUE(file);
  std::stringstream text;
  text << file.rdbuf();
  const boost::json::value cases = boost::json::parse(text.str());
  ASSERT_GE(cases.as_array().size(), 5U);
  for (const auto& row : cases.as_array()) {
    SCOPED_TRACE(std::string(row.at("name").as_string()));
    Catalog catalog = model_from_hf_config(boost::json::serialize(row.at("config")), "config.json").catalog;
    const auto& options = row.at("lora").as_object();
    Lora lora{.rank = options.at("r").to_number<std::uint64_t>(), .targets = words(options.at("target_modules"))};
    if (const auto* saved = options.if_contains("modules_to_save")) lora.modules_to_save = words(*saved);
    add_lora(catalog, lora);
    std::set<std::string> expected;
    for (const auto& tensor : row.at("trainable").as_array()) {
      std::vector<std::uint64_t> shape;
      for (const auto& dim : tensor.at(1).as_array()) shape.push_back(dim.to_number<std::uint64_t>());
      expected.insert(fmt::format("{} [{}]", std::string(tensor.at(0).as_string()), fmt::join(shape, ", ")));
    }
    const std::set<std::string> added = trainable_of(catalog);
    EXPECT_EQ(without(expected, added), std::vector<std::string>{}) << "peft's alone";
    EXPECT_EQ(without(added, expected), std::vector<std::string>{}) << "ours alone";
  }
}

TEST(Lora, StaysFoldedAndCountsAsPublished) {
  Catalog catalog = find_model("llama-2-7b").catalog;
  const std::size_t runs = catalog.runs.size();
  add_lora(catalog, {.rank = 8, .targets = {"q_proj", "v_proj"}});
  EXPECT_EQ(catalog.runs.size(), runs);
  // peft's documentation: trainable params: 4,194,304 || all params: 6,742,609,920
  EXPECT_EQ(trainable_elements(catalog), 4'194'304U);
  EXPECT_EQ(parameter_elements(catalog), 6'742'609'920U);
}

TEST(Lora, SplitsARunWhereUnitsComeToDiffer) {
  Catalog catalog = find_model("llama-2-7b").catalog;
  add_lora(catalog, {.rank = 8, .targets = {"model.layers.3.self_attn.q_proj"}});
  EXPECT_EQ(trainable_elements(catalog), 2U * 8 * 4096);
  EXPECT_EQ(unit_count(catalog), 34U);
}

TEST(Lora, WhatCannotBeAdapted) {
  const auto add = [](const Lora& lora) {
    Catalog catalog = find_model("gpt2").catalog;
    add_lora(catalog, lora);
  };
  expect_config_error([&] { add({.rank = 0, .targets = {"c_attn"}}); }, "--lora-rank", "", "expected 1 or more");
  expect_config_error([&] { add({.rank = 8}); }, "--lora-targets", "", "all-linear");
  expect_config_error([&] { add({.rank = 8, .targets = {"q_proj"}}); }, "--lora-targets", "", "c_attn, c_fc, c_proj");
  expect_config_error([&] { add({.rank = 8, .targets = {"ln_1"}}); }, "--lora-targets", "", "'ln_1' matches no");
  expect_config_error([&] { add({.rank = 8, .targets = {"c_attn"}, .modules_to_save = {"nothing"}}); },
                      "--modules-to-save", "", "'nothing'");
}

Bytes bytes_of(const Catalog& catalog, bool scales) {
  Bytes bytes;
  for_each_tensor(catalog, [&](const std::string&, const Tensor& tensor) {
    if (tensor.dtype && tensor.scales == scales) bytes += bytes_for(*tensor.dtype, elements(tensor.shape));
  });
  return bytes;
}

// QLoRA, sec. 3: double quantisation takes the constants from 0.5 to 0.127 bits per parameter.
TEST(Quantize, DoubleQuantisationTakes0127BitsPerParameter) {
  for (const char* name : {"llama-2-7b", "llama-2-13b", "llama-2-70b"}) {
    Catalog catalog = find_model(name).catalog;
    add_lora(catalog, {.rank = 64, .targets = {"all-linear"}});
    const std::uint64_t parameters = parameter_elements(catalog);
    quantize(catalog, Quantization::nf4);
    EXPECT_EQ(parameter_elements(catalog), parameters) << "scales are no parameters";
    const Bytes weights = bytes_of(catalog, false);
    const double constants =
        8.0 * static_cast<double>(bytes_of(catalog, true).count()) / (2.0 * static_cast<double>(weights.count()));
    EXPECT_NEAR(constants, 8.0 / 64 + 32.0 / (64 * 256), 1e-4) << name;
  }
}

// The blocks of Llama-2-7B: 6,476,005,376 elements in linear modules; embedding, head and norms stay.
TEST(Quantize, StoresLinearModulesOfBlocksOnly) {
  Catalog catalog = find_model("llama-2-7b").catalog;
  add_lora(catalog, {.rank = 8, .targets = {"q_proj"}});
  Catalog int8 = catalog;
  quantize(catalog, Quantization::nf4);
  quantize(int8, Quantization::int8);
  constexpr std::uint64_t kLinear = 32ULL * (4 * 4096 * 4096 + 3 * 4096 * 11008);
  EXPECT_EQ(bytes_of(catalog, false), Bytes{kLinear / 2});
  EXPECT_EQ(bytes_of(int8, false), Bytes{kLinear});
  EXPECT_EQ(bytes_of(int8, true), Bytes{32ULL * 4 * (4 * 4096 + 2 * 11008 + 4096)}) << "a scale for each output";
  for_each_tensor(catalog, [](const std::string& name, const Tensor& tensor) {
    if (name.ends_with("lm_head.weight") || name.ends_with("embed_tokens.weight")) {
      EXPECT_FALSE(tensor.dtype) << name;
    }
    EXPECT_FALSE(tensor.trainable && (tensor.scales || tensor.dtype == DType::nf4)) << name;
  });
}

TEST(Quantize, NeverWhatIsTrained) {
  Catalog catalog = find_model("gpt2").catalog;
  EXPECT_FALSE(has_quantizable(catalog));
  const Catalog before = catalog;
  quantize(catalog, Quantization::int8);
  EXPECT_EQ(catalog, before);
  freeze(catalog, "*.c_fc.weight");
  EXPECT_TRUE(has_quantizable(catalog));
  quantize(catalog, Quantization::int8);
  EXPECT_EQ(bytes_of(catalog, true), Bytes{12ULL * 4 * 3072}) << "GPT-2 stores [input, output]";
}

TEST(Quantize, ShardsLikeAnyFrozenTensorAtEveryStage) {
  Catalog catalog = find_model("llama-2-7b").catalog;
  add_lora(catalog, {.rank = 16, .targets = {"q_proj", "v_proj"}});
  quantize(catalog, Quantization::nf4);
  Bytes whole;
  for (int stage = 0; stage <= 3; ++stage) {
    const auto setup = four_ranks(stage);
    const DeviceMemory device = report_paper(catalog, setup).ranks.front().device;
    const DeviceMemory ours = report_shardplan(catalog, make_step_plan(catalog, setup)).ranks.front().device;
    if (stage == 0) whole = device.parameters;
    const std::uint64_t shards = stage == 3 ? 4 : 1;
    EXPECT_EQ(device.parameters, Bytes{divide_up(whole.count(), shards)});
    const std::uint64_t states = 12ULL * trainable_elements(catalog) / (stage > 0 ? 4 : 1);
    EXPECT_EQ(device.optimizer_states, Bytes{states});
    EXPECT_GE(ours.parameters, device.parameters);
    EXPECT_LT(100 * ours.parameters, 101 * device.parameters);
    EXPECT_EQ(ours.optimizer_states, Bytes{states});
  }
}

}  // namespace
}  // namespace shardplan
