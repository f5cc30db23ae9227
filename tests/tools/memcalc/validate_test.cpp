// memcalc validate on rows of our own: published runs, rows that nobody can predict, files that are none.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <string>

#include "tests/tools/memcalc/program.h"

namespace shardplan::test {
namespace {

namespace json = boost::json;

std::string written(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

// SimuMax, docs/b200/b200_release_v1.2_summary.md: Llama 3 70B with 12 layers, 8 GPUs, tensor parallel 8; and its own figure.
constexpr const char* kPublished = R"([
  {"model": "llama3-70b", "quantity": "peak allocated", "measured": 28.29, "predicted": 28.17,
   "config": {"case": "tp8", "layers": 12, "parallel": "tp8pp1", "micro_batch_num": 4, "mbs": 1, "world_size": 8, "seq": 4096, "cp": 1}},
  {"id": "somebody/else", "framework": "litgpt", "model": "phi-2"},
  {"id": "megatron/gpt/unreadable/run", "gpu": "H100", "args": {"num-layers": 2}, "allocated_bytes_end": 1, "peak_allocated_bytes": 1}
])";

TEST(Validate, RowsArePredictedOrSkippedWithAReason) {
  const std::string path = written("published.json", kPublished);
  const Outcome outcome = memcalc("validate " + path + " --json");
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const json::value result = json::parse(outcome.out);
  ASSERT_EQ(result.at("rows").as_array().size(), 1U);
  const json::value& row = result.at("rows").at(0);
  EXPECT_EQ(row.at("id").as_string(), "tp8");
  EXPECT_EQ(row.at("field").as_string(), "peak_allocated");
  EXPECT_LT(std::abs(row.at("error_percent").as_double()), 0.05);
  EXPECT_NEAR(row.at("peer_error_percent").as_double(), -0.42, 0.01);
  ASSERT_EQ(result.at("skipped").as_array().size(), 2U);
  EXPECT_NE(result.at("skipped").at(0).at("why").as_string().find("litgpt"), json::string::npos);
  EXPECT_NE(result.at("skipped").at(1).at("why").as_string().find("hidden-size"), json::string::npos);
  EXPECT_EQ(result.at("summary").at("published.json").at("rows").to_number<int>(), 1);
  EXPECT_NE(memcalc("validate " + path).out.find("| tp8 | peak_allocated |"), std::string::npos);
}

TEST(Validate, WhatIsNoFileOfRowsIsRefused) {
  EXPECT_EQ(memcalc("validate").status, 2);
  EXPECT_EQ(memcalc("validate /does/not/exist.json").status, 3);
  EXPECT_EQ(memcalc("validate " + written("object.json", "{}")).status, 3);
  EXPECT_EQ(memcalc("validate " + written("broken.json", "[{")).status, 3);
  EXPECT_EQ(memcalc("validate " + written("numbers.json", "[1]")).status, 3);
}

}  // namespace
}  // namespace shardplan::test
