// DeepSpeed's estimators against what its documentation prints (docs/code-docs/source/memory.rst), and Hugging Face's for
// T0_3B. Counts are stated in whole millions, so a printed value has to lie between those of both ends.
#include <gtest/gtest.h>

#include <vector>

#include "planner/engines/deepspeed.h"

namespace shardplan {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
constexpr double kMiB = 1024.0 * 1024.0;

struct Row {
  const char* model;
  int stage;
  DeepSpeedEstimateInput input;  // parameters and largest_layer: the least that is printed so
  std::uint64_t parameters_below;
  std::uint64_t largest_below;
  double unit;
  double cpu;  // -1: not printed
  double gpu;
  double rounding;
};

DeepSpeedEstimateInput input_of(std::uint64_t parameters, std::uint64_t largest, std::uint64_t gpus, bool optimizer,
                                bool parameters_too, bool zero_init) {
  return {.parameters = parameters,
          .largest_layer = largest,
          .gpus_per_node = gpus,
          .nodes = 1,
          .offload_optimizer = optimizer,
          .offload_param = parameters_too,
          .zero_init = zero_init};
}

std::vector<Row> rows() {
  std::vector<Row> all;
  const auto add = [&](const char* model, int stage, const DeepSpeedEstimateInput& input,
                       std::uint64_t parameters_below, std::uint64_t largest_below, double unit, double cpu, double gpu,
                       double rounding) {
    all.push_back({model, stage, input, parameters_below, largest_below, unit, cpu, gpu, rounding});
  };
  const auto t5_3b = [&](bool optimizer, bool parameters, bool zero_init, double cpu, double gpu) {
    add("t5-3b", 3, input_of(2'851'000'000, 32'000'000, 8, optimizer, parameters, zero_init), 2'852'000'000, 33'000'000,
        kGiB, cpu, gpu, 0.005);
  };
  t5_3b(true, true, true, 71.71, 0.12);
  t5_3b(true, true, false, 127.48, 0.12);
  t5_3b(true, false, true, 63.74, 0.79);
  t5_3b(true, false, false, 127.48, 0.79);
  t5_3b(false, false, true, 1.47, 6.10);
  t5_3b(false, false, false, 127.48, 6.10);
  const DeepSpeedEstimateInput offloaded = input_of(2'851'000'000, 0, 8, true, false, true);
  add("t5-3b", 2, offloaded, 2'852'000'000, 0, kGiB, 127.48, 5.31, 0.005);
  DeepSpeedEstimateInput not_offloaded = input_of(2'851'000'000, 0, 8, false, false, true);
  not_offloaded.until_0_14_0 = true;
  add("t5-3b", 2, not_offloaded, 2'852'000'000, 0, kGiB, 127.48, 15.93, 0.005);
  const auto t5_large = [&](bool optimizer, bool parameters, double gpu) {
    add("t5-large", 3, input_of(737'660'000, 32'850'000, 4, optimizer, parameters, true), 737'680'000, 32'950'000, kMiB,
        -1, gpu, 1);
  };
  t5_large(false, false, 3291);
  t5_large(true, true, 125);
  t5_large(true, false, 477);
  const auto t0_3b = [&](bool optimizer, bool parameters, bool zero_init, double cpu, double gpu) {
    add("T0_3B", 3, input_of(2'783'000'000, 65'000'000, 1, optimizer, parameters, zero_init), 2'784'000'000, 66'000'000,
        kGiB, cpu, gpu, 0.005);
  };
  t0_3b(true, true, true, 70.00, 0.25);
  t0_3b(true, true, false, 70.00, 0.25);
  t0_3b(true, false, true, 62.23, 5.43);
  t0_3b(true, false, false, 62.23, 5.43);
  t0_3b(false, false, true, 0.37, 46.91);
  t0_3b(false, false, false, 15.56, 46.91);
  return all;
}

TEST(DeepSpeedEstimators, SayWhatTheyPublished) {
  for (const Row& row : rows()) {
    DeepSpeedEstimateInput most = row.input;
    most.parameters = row.parameters_below;
    most.largest_layer = row.largest_below;
    const auto estimate = [&](const DeepSpeedEstimateInput& input) {
      return row.stage == 2 ? deepspeed_estimate_zero2(input) : deepspeed_estimate_zero3(input);
    };
    const auto between = [&](Bytes low, Bytes high, double printed) {
      return static_cast<double>(low.count()) / row.unit - row.rounding <= printed &&
             printed <= static_cast<double>(high.count()) / row.unit + row.rounding;
    };
    SCOPED_TRACE(row.model);
    EXPECT_TRUE(between(estimate(row.input).gpu, estimate(most).gpu, row.gpu)) << row.gpu << " on the GPU";
    if (row.cpu >= 0) {
      EXPECT_TRUE(between(estimate(row.input).cpu, estimate(most).cpu, row.cpu)) << row.cpu << " on the host";
    }
  }
}

// Where the count is known exactly, so is the value: t5-3b has 2,851,598,336 parameters, its largest layer 32,899,072.
TEST(DeepSpeedEstimators, Exactly) {
  const DeepSpeedEstimateInput input = input_of(2'851'598'336, 32'899'072, 8, true, true, true);
  EXPECT_EQ(deepspeed_estimate_zero2(input).gpu.count(), 2 * 2'851'598'336ULL);
  EXPECT_EQ(deepspeed_estimate_zero2(input).cpu.count(), 48 * 2'851'598'336ULL);
  EXPECT_EQ(deepspeed_estimate_zero3(input).gpu.count(), 4 * 32'899'072ULL);
  EXPECT_EQ(deepspeed_estimate_zero3(input).cpu.count(), 27 * 2'851'598'336ULL);
}

}  // namespace
}  // namespace shardplan
