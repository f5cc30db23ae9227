// What is shown beside a plan: another set-up (--against), measured numbers (--calibrate), an error bar; and explain's tensors.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tests/tools/memcalc/program.h"

namespace shardplan::test {
namespace {

namespace json = boost::json;

std::int64_t difference(const json::value& line) {
  return line.at("difference").to_number<std::int64_t>();
}

TEST(MemcalcAgainst, EachLineIsThatOfThePlansAndTheyAddUp) {
  const json::object both =
      plan("llama-2-7b --gpus 8 --zero 1 --seq 2048 --against \"--zero 3 --recompute full --micro-batch 2\"");
  const json::object there = plan("llama-2-7b --gpus 8 --zero 3 --seq 2048 --recompute full --micro-batch 2");
  const json::object& against = both.at("against").as_object();
  std::int64_t sum = 0;
  std::size_t at_peak = 0;
  for (const json::value& line : against.at("lines").as_array()) {
    const std::string name(line.at("name").as_string());
    const std::string part(line.at("part").as_string());
    const auto of = [&](const json::object& planned) -> json::value {
      const json::object& device = planned.at("worst").at("device").as_object();
      if (part == "at_peak") return device.at("at_peak").at(name);
      if (part != "communication") return device.at(name);
      const json::object& communication = planned.at("communication").as_object();
      return communication.contains(name) ? communication.at(name) : communication.at("by_operation").at(name);
    };
    EXPECT_EQ(line.at("here"), of(both)) << part << " " << name;
    EXPECT_EQ(line.at("there"), of(there)) << part << " " << name;
    if (part == "at_peak" && !line.at("here").is_null()) {
      sum += difference(line);
      ++at_peak;
    }
    if (name == "peak_allocated") {
      EXPECT_EQ(sum, difference(line));
    }
  }
  EXPECT_EQ(at_peak, 8U);
  EXPECT_LT(sum, 0);
  std::vector<std::string> settings;
  for (const json::value& setting : against.at("setup").as_array()) {
    settings.emplace_back(setting.at("name").as_string());
  }
  EXPECT_EQ(settings, (std::vector<std::string>{"zero_stage", "micro_batch", "cadence", "recompute"}));
  EXPECT_GT(against.at("step_seconds").at("difference").as_double(), 0);
  const std::string text = memcalc("plan gpt2 --seq 512 --against \"--recompute full\"").out;
  EXPECT_NE(text.find("Against --recompute full"), std::string::npos) << text;
}

TEST(MemcalcAgainst, AnotherModel) {
  const json::object both = plan("gpt2 --seq 512 --against gpt2-medium");
  const json::object there = plan("gpt2-medium --seq 512");
  for (const json::value& line : both.at("against").at("lines").as_array()) {
    if (line.at("name") == "peak_allocated") {
      EXPECT_EQ(line.at("there"), there.at("worst").at("device").at("peak_allocated"));
    }
  }
}

TEST(MemcalcAgainst, WhatIsWrongIsSaid) {
  expect_failure("plan gpt2 --against \"--zero 9\"", 2, "--against");
  expect_failure("plan gpt2 --against \"--no-such-flag\"", 2, "--against");
  expect_failure("plan --params 7e9 --against gpt2", 2, "'gpt2' is no flag");
}

std::string written(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + name;
  std::ofstream(path) << text;
  return path;
}

TEST(MemcalcCalibrate, SaysWhichPartDiffers) {
  const std::string words = "gpt2 --seq 512 --gpu h100-80gb ";
  const json::object planned = plan(words);
  const json::object& device = planned.at("worst").at("device").as_object();
  json::object measured;
  for (const char* name : {"allocated_after_step", "peak_allocated", "peak_reserved", "total"})
    measured[name] = device.at(name);
  const std::string same = written("same.json", json::serialize(measured));
  const json::object calibrated = plan(words + "--calibrate " + same);
  for (const json::value& part : calibrated.at("calibration").at("parts").as_array()) {
    EXPECT_EQ(difference(part), 0) << part.at("name");
  }
  EXPECT_NE(memcalc("plan " + words + "--calibrate " + same).out.find("Nothing differs"), std::string::npos);
  // 3 MiB more from the peak on: activations; and from what is reserved on 5 MiB less.
  constexpr std::int64_t kMiB = 1 << 20;
  for (const char* name : {"peak_allocated", "peak_reserved", "total"}) {
    measured[name] =
        device.at(name).to_number<std::int64_t>() + (name == std::string("peak_allocated") ? 3 : -2) * kMiB;
  }
  const json::object other = plan(words + "--calibrate " + written("other.json", json::serialize(measured)));
  const json::object& calibration = other.at("calibration").as_object();
  const json::array& parts = calibration.at("parts").as_array();
  ASSERT_EQ(parts.size(), 4U);
  EXPECT_EQ(difference(parts[0]), 0);
  EXPECT_EQ(difference(parts[1]), 3 * kMiB);
  EXPECT_EQ(difference(parts[2]), -5 * kMiB);
  EXPECT_EQ(difference(parts[3]), 0);
  EXPECT_EQ(calibration.at("largest"), "allocator slack");
}

// One number is enough: what is not told apart is one part.
TEST(MemcalcCalibrate, YamlWithSizes) {
  const json::object answer = plan("gpt2 --seq 512 --calibrate " + written("one.yaml", "peak_allocated: 4GiB\n"));
  const json::array& parts = answer.at("calibration").at("parts").as_array();
  ASSERT_EQ(parts.size(), 1U);
  EXPECT_EQ(parts[0].at("measured"), std::int64_t{4} << 30);
  EXPECT_EQ(parts[0].at("planned"), answer.at("worst").at("device").at("peak_allocated"));
}

TEST(MemcalcCalibrate, ASnapshotOfPyTorch) {
  const json::object answer = plan("gpt2 --seq 512 --calibrate " MEMORY_SNAPSHOTS "/step.pickle");
  const json::object& calibration = answer.at("calibration").as_object();
  EXPECT_EQ(calibration.at("measured").at("peak_allocated"), 68 << 20);
  EXPECT_EQ(calibration.at("snapshot").at("at_peak").at("backward"), 16 << 20);
}

TEST(MemcalcCalibrate, WhatIsWrongIsSaid) {
  expect_failure("plan gpt2 --seq 8 --calibrate /nowhere.json", 3, "/nowhere.json");
  expect_failure("plan gpt2 --seq 8 --calibrate " + written("key.json", "{\"peak\": 1}"), 3,
                 "peak: is not known: expected parameters, gradients");
  expect_failure("plan gpt2 --seq 8 --calibrate " + written("none.json", "{}"), 3, "measures nothing");
  expect_failure("plan gpt2 --seq 8 --calibrate " + written("size.json", "{\"total\": \"80Gi\"}"), 3, "total: ");
}

// Only where runs of this engine and this client's code were measured.
TEST(MemcalcErrorBar, IsOfMeasuredRuns) {
  const json::object megatron = plan("llama-2-7b --gpus 8 --tp 8 --seq 2048 --engine megatron");
  const json::object& bar = megatron.at("error_bar").at("peak_allocated").as_object();
  const std::uint64_t peak = number(megatron.at("worst").at("device").at("peak_allocated"));
  EXPECT_LT(number(bar.at("low")), peak);
  EXPECT_GT(number(bar.at("high")), peak);
  EXPECT_GT(number(bar.at("rows")), 50U);
  EXPECT_TRUE(plan("gpt2 --seq 512").at("error_bar").at("peak_allocated").is_null());
}

// The bar is what validate says of the measured runs themselves, to the two digits that docs/validation.md has.
TEST(MemcalcErrorBar, GoldenRowsAreTheOnesThatValidateCompares) {
  const std::string folder = std::getenv("SHARDPLAN_GOLDEN");
  const json::object bars = plan("llama-2-7b --gpus 8 --tp 8 --seq 2048 --engine megatron").at("error_bar").as_object();
  const json::object validated = json::parse(memcalc("validate " + folder + "/measured --json").out).as_object();
  const json::object& fields = validated.at("summary").at("megatron.json").at("fields").as_object();
  for (const auto& [field, bar] : bars) {
    const json::object& summary = fields.at(field).as_object();
    EXPECT_EQ(bar.at("rows"), summary.at("rows")) << field;
    for (const char* value : {"median_abs_percent", "p90_abs_percent", "max_abs_percent"}) {
      EXPECT_NEAR(bar.at(value).to_number<double>(), summary.at(value).to_number<double>(), 0.005) << field << value;
    }
  }
}

TEST(MemcalcExplain, TheClientsTensorsAddUp) {
  const std::string words = "llama-2-7b --gpus 8 --zero 3 --seq 2048";
  const Outcome outcome = memcalc("explain " + words + " --json");
  const json::object answer = json::parse(outcome.out).as_object();
  const json::object planned = plan(words);
  const json::object& at_peak = planned.at("worst").at("device").at("at_peak").as_object();
  const json::object& client = answer.at("client").as_object();
  std::uint64_t activations = 0;
  std::uint64_t loss = 0;
  for (const json::value& tensor : client.at("live_at_peak").as_array()) {
    if (tensor.at("purpose") == "activations") activations += number(tensor.at("bytes"));
    if (tensor.at("purpose") == "loss") loss += number(tensor.at("bytes"));
  }
  EXPECT_EQ(activations, number(at_peak.at("activations")));
  EXPECT_EQ(loss, number(at_peak.at("loss")));
  EXPECT_GT(client.at("chunks").at(0).at("saved").as_array().size(), 3U);
  EXPECT_EQ(client.at("peak_at"), planned.at("worst").at("device").at("peak_at"));
  EXPECT_NE(memcalc("explain " + words).out.find("kept by mlp.down_proj: linear"), std::string::npos);
  // Without a sequence nothing is known of it.
  EXPECT_TRUE(json::parse(memcalc("explain gpt2 --json").out).at("client").is_null());
}

}  // namespace
}  // namespace shardplan::test
