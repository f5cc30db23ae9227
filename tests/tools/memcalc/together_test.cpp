// Several MODELs on the same GPUs: what stays adds up, and peaks take turns.
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <string>

#include "tests/tools/memcalc/program.h"

namespace shardplan::test {
namespace {

namespace json = boost::json;

const std::string kFlags = " --gpus 4 --zero 2 --seq 1024 --precision bf16-mixed";

std::uint64_t device(const json::object& planned, const char* field) {
  return number(planned.at("worst").at("device").at(field));
}

// cuBLAS' workspace, which both have in their plans alone and which is one: it is what two equal models have less than twice.
TEST(Together, ResidentsAddUpAndPeaksTakeTurns) {
  const json::object large = plan("gpt2-medium" + kFlags);
  const json::object small = plan("gpt2" + kFlags);
  const json::object both = plan("gpt2-medium gpt2" + kFlags);
  const json::object twice = plan("gpt2 gpt2" + kFlags);
  const std::uint64_t libraries = 2 * device(small, "allocated_after_step") - device(twice, "allocated_after_step");
  EXPECT_GT(libraries, 0U);
  EXPECT_LT(libraries, 128U << 20);
  EXPECT_EQ(device(both, "model_states"), device(large, "model_states") + device(small, "model_states"));
  EXPECT_EQ(device(both, "allocated_after_step"),
            device(large, "allocated_after_step") + device(small, "allocated_after_step") - libraries);
  EXPECT_EQ(device(both, "peak_allocated"),
            std::max(device(large, "peak_allocated") + device(small, "allocated_after_step"),
                     device(small, "peak_allocated") + device(large, "allocated_after_step")) -
                libraries);
  EXPECT_EQ(device(both, "context"), device(large, "context"));
  std::uint64_t sum = 0;
  for (const auto& part : both.at("worst").at("device").at("at_peak").as_object()) {
    if (!part.value().is_null()) sum += number(part.value());
  }
  EXPECT_EQ(sum, device(both, "peak_allocated"));
  EXPECT_EQ(both.at("models").as_array().size(), 2U);
}

TEST(Together, AFrozenModelHasParametersAlone) {
  const json::object both = plan("gpt2-medium gpt2:frozen" + kFlags);
  const json::object& frozen = both.at("models").at(1).at("worst").at("device").as_object();
  EXPECT_GT(number(frozen.at("parameters")), 0U);
  EXPECT_EQ(number(frozen.at("gradients")), 0U);
  EXPECT_EQ(number(frozen.at("optimizer_states")), 0U);
  EXPECT_EQ(number(both.at("models").at(1).at("model").at("trainable_parameters")), 0U);
  EXPECT_GT(number(both.at("models").at(0).at("model").at("trainable_parameters")), 0U);
  // It computes without saving anything: less than in training.
  const json::object trained = plan("gpt2" + kFlags);
  EXPECT_LT(number(frozen.at("peak_allocated")), device(trained, "peak_allocated"));
}

TEST(Together, WhetherTheyFit) {
  EXPECT_EQ(memcalc("plan gpt2-xl gpt2-xl:frozen --seq 512 --gpu 80GiB").status, 0);
  EXPECT_EQ(memcalc("plan gpt2-xl gpt2-xl --seq 512 --gpu 40GiB").status, 1);
}

TEST(Together, WhatTakesOneModelSaysSo) {
  expect_failure("explain gpt2 gpt2-xl", 2, "expected one, found 2");
  expect_failure("simulate gpt2 gpt2-xl", 2, "expected one, found 2");
  expect_failure("plan gpt2 gpt2-xl --freeze 'wte*'", 2, "MODEL:frozen");
  expect_failure("plan gpt2 gpt2-xl --against '--zero 3'", 2, "without --against");
  expect_failure("plan gpt2 gpt2-xl --export deepspeed", 2, "without --export");
  expect_failure("fit gpt2 :frozen --gpu 80GiB --seq 512", 2, "':frozen' names no model");
  expect_failure("plan gpt2:frozen --lora-rank 8 --lora-targets all-linear", 2, "without :frozen");
}

// --freeze beside MODEL:frozen adds up; a glob that matches nothing is still an error.
TEST(Together, FrozenAndFreezeAddUp) {
  EXPECT_EQ(number(plan("gpt2:frozen --seq 512 --freeze 'transformer.h.0.*'").at("model").at("trainable_parameters")),
            0U);
  EXPECT_EQ(memcalc("plan gpt2:frozen --seq 512 --freeze 'nothing*'").status, 2);
}

}  // namespace
}  // namespace shardplan::test
