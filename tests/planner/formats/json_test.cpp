#include "planner/formats/json.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

using test_support::expect_config_error;

TEST(Json, ReadsEveryKindOfValue) {
  const JsonDocument document(R"( {"null": null, "yes": true, "no": false, "count": 18446744073709551615, "minus": -7,
                                   "real": 2.5, "text": "a\u00e9\n\"\\", "list": [1, [2], {}], "object": {"k": "v"}} )",
                              "file");
  const JsonView root = document.root();
  EXPECT_TRUE(root["null"].is_null());
  EXPECT_TRUE(root["yes"].as_bool());
  EXPECT_FALSE(root["no"].as_bool());
  EXPECT_EQ(root["count"].as_count(), UINT64_MAX);
  EXPECT_EQ(root["minus"].as_number(), -7.0);
  EXPECT_EQ(root["real"].as_number(), 2.5);
  EXPECT_EQ(root["text"].as_string(), "a\xC3\xA9\n\"\\");
  EXPECT_EQ(root["object"]["k"].as_string(), "v");
  EXPECT_EQ(root["list"].size(), 3U);
  std::vector<std::string> paths;
  for (const JsonView element : root["list"].elements()) paths.push_back(element.path());
  EXPECT_EQ(paths, (std::vector<std::string>{"list[0]", "list[1]", "list[2]"}));
  std::vector<std::string> keys;
  for (const JsonView member : root.members()) keys.emplace_back(member.key());
  EXPECT_EQ(keys, (std::vector<std::string>{"null", "yes", "no", "count", "minus", "real", "text", "list", "object"}));
  EXPECT_FALSE(root["absent"].exists());
  EXPECT_EQ(root["absent"].path(), "absent");
  EXPECT_EQ(root["object"]["absent"].path(), "object.absent");
}

TEST(Json, ReadsIntegersHoweverTheyAreWritten) {
  const std::pair<const char*, std::uint64_t> cases[] = {
      {"0", 0},
      {"-0", 0},
      {"-0.0", 0},
      {"4096", 4096},
      {"4096.0", 4096},
      {"5e8", 500'000'000},
      {"5E+8", 500'000'000},
      {"1.5e3", 1500},
      {"4096000e-3", 4096},
      {"9007199254740993.0", 9007199254740993U},
      {"1.8446744073709551615e19", UINT64_MAX},
      {"18446744073709551615", UINT64_MAX},
      {"1e19", 10'000'000'000'000'000'000U},
      {"4096.0000000000000000000000000000", 4096},
  };
  for (const auto& [text, value] : cases) {
    const JsonDocument document(text, "file");
    EXPECT_EQ(document.root().as_count(), value) << text;
  }
}

TEST(Json, ReadsPythonsBareInfinitiesAndNaN) {
  const JsonDocument document(
      "{\"a\": Infinity, \"b\":-Infinity,\"c\\\"NaN\": [NaN], \"Infinity\": \"-Infinity NaN \\\\\", \"d\": NaN}",
      "file");
  const JsonView root = document.root();
  EXPECT_EQ(root["a"].as_number(), std::numeric_limits<double>::infinity());
  EXPECT_EQ(root["b"].as_number(), -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan((*root["c\"NaN"].elements().begin()).as_number()));
  EXPECT_EQ(root["Infinity"].as_string(), "-Infinity NaN \\");
  EXPECT_TRUE(std::isnan(root["d"].as_number()));
  expect_config_error([&] { root["a"].as_count(); }, "file", "a", "expected a non-negative integer");
  EXPECT_TRUE(std::isnan(JsonDocument("NaN", "file").root().as_number()));
}

TEST(Json, SkipsAByteOrderMark) {
  const JsonDocument document("\xEF\xBB\xBF{\"a\": 1}", "file");
  EXPECT_EQ(document.root()["a"].as_count(), 1U);
}

TEST(Json, SyntaxErrorsSayWhere) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "line 1, column 1: the text ends too early"},
      {"{\"a\": 1,\n  \"b\" 2}", "line 2, column 7: syntax error"},
      {"{\"a\": 1", "line 1, column 8: the text ends too early"},
      {"{\"a\": \"unfinished", "the text ends too early"},
      {"{} {}", "line 1, column 4: more text after the end"},
      {"1 Infinity", "more text after the end"},
      {"Infinity 1", "more text after the end"},
      {"NaN NaN", "more text after the end"},
      {"{\"a\": Infinityx}", "line 1, column 15: syntax error"},
      {"[1Infinity]", "line 1, column"},
      {"[1-Infinity]", "line 1, column"},
      {"{Infinity: 1}", "line 1, column"},
      {"{\"a\" NaN}", "line 1, column"},
      {"[--Infinity]", "line 1, column"},
      {"{'a': 1}", "line 1, column 2: syntax error"},
      {"[1,]", "line 1, column 4: syntax error"},
      {"[1e99999999999]", "line 1, column"},
      {"\"\xC0\xAF\"", "line 1, column"},
      {"\"\\ud800\"", "line 1, column"},
      {"[1] // comment", "line 1, column"},
      {"\xFE\xFF{}", "line 1, column 1: syntax error"},
  };
  for (const auto& [text, problem] : cases) {
    SCOPED_TRACE(text);
    expect_config_error([&, &text = text] { JsonDocument document(text, "file"); }, "file", "", problem);
  }
}

TEST(Json, RefusesAKeyTwiceAndNamesIt) {
  expect_config_error([] { JsonDocument document(R"({"a": 1, "b": 2, "a": 1})", "file"); }, "file", "a",
                      "appears twice");
  expect_config_error([] { JsonDocument document(R"({"rope": [{"x": 1, "\u0078": 1}]})", "file"); }, "file",
                      "rope[0].x", "appears twice");
  const JsonDocument fine(R"({"a": {"a": 1}, "b": {"a": 1}})", "file");
  EXPECT_EQ(fine.root()["b"]["a"].as_count(), 1U);
}

TEST(Json, DepthEndsAt64) {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(JsonDocument(nested(64), "file"));
  expect_config_error([&] { JsonDocument document(nested(65), "file"); }, "file", "",
                      "column 65: nested deeper than 64");
  expect_config_error([] { JsonDocument document(std::string(1'000'000, '['), "file"); }, "file", "", "deeper than 64");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  expect_config_error([&] { JsonDocument document(objects, "file"); }, "file", "", "deeper than 64");
}

TEST(Json, WrongValuesNameFileKeyAndBoth) {
  const char* text =
      R"({"null": null, "yes": true, "zero": 0, "minus": -3, "real": 1.5, "huge": 1e30, "beyond": 18446744073709551616,
    "text": "abc", "long": "0123456789012345678901234567890123456789012345", "list": [4096], "object": {"inner": {"x": "y"}}, "whole": 4.0})";
  const JsonDocument document(text, "dir/config.json");
  const JsonView root = document.root();
  const std::tuple<const char*, std::function<void(JsonView)>, const char*> cases[] = {
      {"null", [](JsonView v) { v.as_positive(); }, "expected a positive integer, found null"},
      {"yes", [](JsonView v) { v.as_positive(); }, "expected a positive integer, found true"},
      {"zero", [](JsonView v) { v.as_positive(); }, "expected a positive integer, found 0"},
      {"minus", [](JsonView v) { v.as_positive(); }, "expected a positive integer, found -3"},
      {"minus", [](JsonView v) { v.as_count(); }, "expected a non-negative integer, found -3"},
      {"real", [](JsonView v) { v.as_count(); }, "expected a non-negative integer"},
      {"real", [](JsonView v) { v.as_count(); }, "found 1.5"},
      {"huge", [](JsonView v) { v.as_positive(); },
       "expected a positive integer up to 18446744073709551615, found 1e+30"},
      {"beyond", [](JsonView v) { v.as_positive(); }, "up to 18446744073709551615"},
      {"text", [](JsonView v) { v.as_positive(); }, "expected a positive integer, found \"abc\""},
      {"long", [](JsonView v) { v.as_positive(); }, "found \"012345678901234567890123456789012345678"},
      {"long", [](JsonView v) { v.as_positive(); }, "...\""},
      {"list", [](JsonView v) { v.as_positive(); }, "expected a positive integer, found an array"},
      {"object", [](JsonView v) { v.as_positive(); }, "expected a positive integer, found an object"},
      {"list", [](JsonView v) { (*v.elements().begin()).as_positive(4095); },
       "expected a positive integer up to 4095, found 4096"},
      {"absent", [](JsonView v) { v.as_positive(); }, "expected a positive integer, but the key is missing"},
      {"absent", [](JsonView v) { v["x"]; }, "expected an object, but the key is missing"},
      {"text", [](JsonView v) { v["x"]; }, "expected an object, found \"abc\""},
      {"object", [](JsonView v) { v.elements(); }, "expected an array, found an object"},
      {"zero", [](JsonView v) { v.as_bool(); }, "expected true or false, found 0"},
      {"null", [](JsonView v) { v.as_bool_or(true); }, "expected true or false, found null"},
      {"zero", [](JsonView v) { v.as_string(); }, "expected a string, found 0"},
      {"text", [](JsonView v) { v.as_number(); }, "expected a number, found \"abc\""},
      {"whole", [](JsonView v) { v.as_digits(); }, "expected an integer written in digits alone"},
  };
  for (const auto& [key, read, problem] : cases) {
    SCOPED_TRACE(problem);
    const bool element = std::string(problem).find("4095") != std::string::npos;
    expect_config_error([&, key = key, &read = read] { read(root[key]); }, "dir/config.json",
                        element ? std::string(key) + "[0]" : key, problem);
  }
  expect_config_error([&] { root["object"]["inner"]["x"].as_count(); }, "dir/config.json", "object.inner.x", "\"y\"");
  try {
    root["text"].as_positive();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "dir/config.json: text: expected a positive integer, found \"abc\"");
  }
}

TEST(Json, DefaultsAreForMissingKeysOnly) {
  const JsonDocument document(R"({"a": false})", "file");
  EXPECT_FALSE(document.root()["a"].as_bool_or(true));
  EXPECT_TRUE(document.root()["b"].as_bool_or(true));
}

TEST(Json, ShortensTextBetweenCharacters) {
  const JsonDocument document("\"" + std::string(39, 'x') + "\xC3\xA9\xC3\xA9\"", "file");
  const std::string shown = document.root().shown();
  EXPECT_NO_THROW(JsonDocument(shown, "shown is UTF-8 still"));
}

}  // namespace
}  // namespace shardplan
