#include "planner/formats/yaml.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <limits>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

std::string shown(std::string_view scalar) {
  const JsonDocument document = json_from_yaml(std::string("a: ") + std::string(scalar), "file");
  return document.root()["a"].shown();
}

TEST(Yaml, MapsListsAndScalarsAreJsonValues) {
  const JsonDocument document = json_from_yaml(
      "# accelerate\n"
      "distributed_type: FSDP\n"
      "num_processes: 8\n"
      "fsdp_config:\n"
      "  fsdp_offload_params: false\n"
      "  names: [a, 'b c', \"d\\u00e9\"]\n"
      "list:\n  - 1\n  - {x: null, y: }\n"
      "text: |\n  two\n  lines\n",
      "file.yaml");
  const JsonView root = document.root();
  EXPECT_EQ(root["distributed_type"].as_string(), "FSDP");
  EXPECT_EQ(root["num_processes"].as_count(), 8U);
  EXPECT_FALSE(root["fsdp_config"]["fsdp_offload_params"].as_bool());
  std::vector<std::string> names;
  for (const JsonView name : root["fsdp_config"]["names"].elements()) names.emplace_back(name.as_string());
  EXPECT_EQ(names, (std::vector<std::string>{"a", "b c", "d\xC3\xA9"}));
  EXPECT_EQ(root["list"].size(), 2U);
  for (const JsonView element : root["list"].elements()) {
    if (!element.is_object()) continue;
    EXPECT_TRUE(element["x"].is_null());
    EXPECT_TRUE(element["y"].is_null());
  }
  EXPECT_EQ(root["text"].as_string(), "two\nlines\n");
  expect_config_error([&] { root["fsdp_config"]["names"].as_bool(); }, "file.yaml", "fsdp_config.names",
                      "expected true or false, found an array");
}

TEST(Yaml, PlainScalarsHaveTypesAndQuotedOnesAreText) {
  const std::pair<const char*, const char*> cases[] = {{"", "null"},
                                                       {"~", "null"},
                                                       {"Null", "null"},
                                                       {"true", "true"},
                                                       {"YES", "true"},
                                                       {"off", "false"},
                                                       {"no", "false"},
                                                       {"y", "\"y\""},
                                                       {"7", "7"},
                                                       {"-7", "-7"},
                                                       {"+7", "7"},
                                                       {"5e8", "500000000"},
                                                       {"1e-4", "0.0001"},
                                                       {".5", "0.5"},
                                                       {"1.", "1"},
                                                       {"1.e2", "100"},
                                                       {"-.25", "-0.25"},
                                                       {".inf", "inf"},
                                                       {"-.INF", "-inf"},
                                                       {"0", "0"},
                                                       {"0.0", "0"},
                                                       {"010", "\"010\""},
                                                       {"0x10", "\"0x10\""},
                                                       {"1_000", "\"1_000\""},
                                                       {"1:30", "\"1:30\""},
                                                       {"--num", "\"--num\""},
                                                       {"'true'", "\"true\""},
                                                       {"\"8\"", "\"8\""},
                                                       {"1.2.3", "\"1.2.3\""},
                                                       {"e5", "\"e5\""},
                                                       {".", "\".\""},
                                                       {"bf16", "\"bf16\""},
                                                       {"${DATA}/x", "\"${DATA}/x\""},
                                                       {":4096:8", "\":4096:8\""}};
  for (const auto& [scalar, value] : cases) EXPECT_EQ(shown(scalar), value) << scalar;
}

TEST(Yaml, WhatIsRefusedSaysWhere) {
  const std::pair<std::string, const char*> cases[] = {
      {"a: &x 1\nb: *x\n", "anchors (&name) and aliases"},
      {"a: &x {b: 1}\n", "anchors (&name) and aliases"},
      {"a: *x\n", "line 1, column"},
      {"a: !!str 5\n", "tags (!name)"},
      {"a: !python/object:os.system {}\n", "tags (!name)"},
      {"a: !!map {b: 1}\n", "tags (!name)"},
      {"<<: {a: 1}\n", "merge keys"},
      {"a: 1\n---\nb: 2\n", "second document"},
      {"? [1, 2]\n: 3\n", "is no key"},
      {"? {a: 1}\n: 3\n", "is no key"},
      {"a: [1, 2\n", "line 2"},
      {"a: 'open", "line 1"},
      {"a: b: c\n", "line 1"},
      {std::string(1 << 20, ' ') + "a: 1", "1 MiB"},
      {std::string(2000, '[') + std::string(2000, ']'), "nested deeper than 64"},
  };
  for (const auto& [text, problem] : cases) {
    SCOPED_TRACE(problem);
    expect_config_error([&, &text = text] { json_from_yaml(text, "file"); }, "file", "", problem);
  }
  expect_config_error([] { json_from_yaml("a: 1\nb: 2\na: 3\n", "file"); }, "file", "a", "appears twice");
  expect_config_error([] { json_from_yaml("x: {a: 1, \"a\": 2}\n", "file"); }, "file", "x.a", "appears twice");
  std::string deep;
  for (int level = 0; level < 64; ++level) deep += "[";
  EXPECT_NO_THROW(json_from_yaml(deep + std::string(64, ']'), "file"));
}

// An expansion of aliases would be 10^9 values.
TEST(Yaml, ABombOfAliasesIsRefusedAtItsFirstAnchor) {
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int level = 1; level < 10; ++level) {
    bomb += "a" + std::to_string(level) + ": &a" + std::to_string(level) + " [";
    for (int i = 0; i < 10; ++i) bomb += "*a" + std::to_string(level - 1) + (i < 9 ? ", " : "]\n");
  }
  expect_config_error([&] { json_from_yaml(bomb, "file"); }, "file", "", "line 1, column");
}

TEST(Yaml, AnEmptyDocumentIsNullAndTextThatBeginsWithABraceIsJson) {
  for (const char* text : {"", "\n\n", "# nothing\n", "---\n", "~"}) {
    EXPECT_TRUE(json_from_yaml(text, "file").root().is_null()) << text;
  }
  EXPECT_EQ(json_from_json_or_yaml(" {\"a\": 1}", "file").root()["a"].as_count(), 1U);
  EXPECT_EQ(json_from_json_or_yaml("a: 1", "file").root()["a"].as_count(), 1U);
  expect_config_error([] { json_from_json_or_yaml("{a: 1}", "file"); }, "file", "", "line 1, column 2: syntax error");
}

RC_GTEST_PROP(YamlProperty, AScalarThatIsWrittenReadsBack, ()) {
  const std::string text = *rc::gen::container<std::string>(rc::gen::inRange<char>(1, 127));
  const JsonDocument document = json_from_yaml("a: " + yaml_scalar(text) + "\n", "file");
  RC_ASSERT(document.root()["a"].as_string() == text);
}

}  // namespace
}  // namespace shardplan
