// memcalc validate on rows of our own: published runs, rows that nobody can predict, files that are none.
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdlib>
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

// Parameters, gradients, two moments and the roots of one of them, 2 bytes each: with a text of 8 tokens no activation comes near.
TEST(Validate, FullFineTuningInPlainPyTorchPeaksInTheUpdate) {
  const auto predicted = [](const std::string& optimizer, std::uint64_t tokens) {
    const std::string path =
        written("peft.json", R"([{"id": "peft/MetaMathQA/full", "framework": "huggingface/peft method_comparison",
        "model": "meta-llama/Llama-3.2-3B", "accelerator_memory_max_bytes": 1,
        "train_config": {"max_seq_length": )" +
                                 std::to_string(tokens) +
                                 R"(, "batch_size": 1, "optimizer_type": "AdamW", "optimizer_kwargs": )" + optimizer +
                                 R"(}, "peft_config": null}])");
    const json::value result = json::parse(memcalc("validate " + path + " --json").out);
    return result.at("rows").at(0).at("predicted").to_number<double>();
  };
  constexpr double kParameters = 3212749824;
  EXPECT_NEAR(predicted(R"({"lr": 1e-5})", 8) / kParameters, 10, 0.02);
  EXPECT_LT(predicted(R"({"fused": true})", 8) / kParameters, 8.5);
  // Gradients come as the backward makes them: at the peak of a long text, in its head, there are few.
  const Outcome plan = memcalc("plan llama-3.2-3b --engine paper --precision bf16 --gpu l40s --seq 2048 --json");
  const double with_all =
      json::parse(plan.out).at("worst").at("device").at("peak_reserved").to_number<double>() / kParameters;
  EXPECT_LT(predicted(R"({"fused": true})", 2048) / kParameters, with_all - 0.5);
}

// docs/validation.md, in figures; and at most a quarter of a file's rows that say what was measured is left out.
struct Bounds {
  const char* file;
  const char* field;
  double median;
  double ninetieth;
  double worst;
};
constexpr double kAny = 1e9;
constexpr Bounds kBounds[] = {
    {"megatron.json", "peak_allocated", 2, 8, kAny},     {"simumax_b200.json", "peak_allocated", kAny, kAny, 1.4},
    {"litgpt.json", "peak_allocated", 5, kAny, kAny},    {"torchtune.json", "peak_allocated", 5, kAny, kAny},
    {"torchtitan.json", "peak_reserved", 5, kAny, kAny}, {"peft.json", "peak_reserved", 5, kAny, kAny}};

TEST(ValidateGolden, PublishedRunsAreWithinBounds) {
  const char* folder = std::getenv("SHARDPLAN_GOLDEN");
  ASSERT_NE(folder, nullptr) << "SHARDPLAN_GOLDEN is not set";
  const Outcome outcome = memcalc("validate " + std::string(folder) + "/measured --json");
  ASSERT_EQ(outcome.status, 0) << outcome.error;
  const json::value result = json::parse(outcome.out);
  for (const Bounds& bounds : kBounds) {
    const json::value& summary = result.at("summary").at(bounds.file).at("fields").at(bounds.field);
    EXPECT_LE(summary.at("median_abs_percent").as_double(), bounds.median) << bounds.file;
    EXPECT_LE(summary.at("p90_abs_percent").as_double(), bounds.ninetieth) << bounds.file;
    EXPECT_LE(summary.at("max_abs_percent").as_double(), bounds.worst) << bounds.file;
    double skipped = 0;
    for (const json::value& row : result.at("skipped").as_array()) {
      const auto& why = row.at("why").as_string();
      const bool scored =
          why.find("not scored") == json::string::npos && why.find("ran out of memory") == json::string::npos;
      if (row.at("file").as_string() == bounds.file && scored) ++skipped;
    }
    EXPECT_LE(skipped, (summary.at("rows").to_number<double>() + skipped) / 4) << bounds.file;
  }
  // After the step: within 1 % or 16 MiB.
  double near = 0;
  double rows = 0;
  for (const json::value& row : result.at("rows").as_array()) {
    if (row.at("file").as_string() != "megatron.json" || row.at("field").as_string() != "allocated_after_step")
      continue;
    const double error = std::abs(row.at("predicted").to_number<double>() - row.at("measured").to_number<double>());
    ++rows;
    if (error <= std::max(0.01 * row.at("measured").to_number<double>(), 16.0 * 1024 * 1024)) ++near;
  }
  EXPECT_GE(near, 0.8 * rows);
  EXPECT_GT(rows, 50);
}

}  // namespace
}  // namespace shardplan::test
