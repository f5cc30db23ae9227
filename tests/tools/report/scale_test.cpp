#include "tools/report/scale.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cmath>

#include "tools/report/svg.h"

namespace shardplan::report {
namespace {

std::vector<std::string> labels(const Scale& scale) {
  std::vector<std::string> labels;
  for (const Scale::Tick& tick : scale.ticks()) labels.push_back(tick.label);
  return labels;
}

TEST(Scale, UnitsFollowTheLargestValue) {
  EXPECT_EQ(unit_of_bytes(0).name, "GB");
  EXPECT_EQ(unit_of_bytes(1e15).name, "GB");
  EXPECT_EQ(unit_of_bytes(1e8).name, "GB");
  EXPECT_EQ(unit_of_bytes(0.99e8).name, "MB");
  EXPECT_EQ(unit_of_bytes(5000).name, "kB");
  EXPECT_EQ(unit_of_bytes(1).name, "B");
  EXPECT_EQ(unit_of_seconds(0).name, "ms");
  EXPECT_EQ(unit_of_seconds(90).name, "ms");
  EXPECT_EQ(unit_of_seconds(1e-5).name, "µs");
  EXPECT_EQ(unit_of_seconds(1e-9).name, "ns");
}

TEST(Scale, TicksAreRoundNumbers) {
  const AxisUnit gb = unit_of_bytes(1e9);
  EXPECT_EQ(labels(Scale(15.1e9, gb, 300, 60)), (std::vector<std::string>{"0", "5", "10", "15"}));
  EXPECT_EQ(labels(Scale(1e15, gb, 300, 100)), (std::vector<std::string>{"0", "500,000", "1,000,000"}));
  EXPECT_EQ(labels(Scale(0.5e9, gb, 300, 60)), (std::vector<std::string>{"0", "0.1", "0.2", "0.3", "0.4", "0.5"}));
  EXPECT_EQ(labels(Scale(0, gb, 300, 140)), (std::vector<std::string>{"0", "0.5", "1.0"}));
}

TEST(Scale, MapsValuesToPixels) {
  const Scale scale(20e9, unit_of_bytes(20e9), 300, 30);
  EXPECT_DOUBLE_EQ(scale.pixels(0), 0);
  EXPECT_DOUBLE_EQ(scale.pixels(5e9), 75);
  EXPECT_DOUBLE_EQ(scale.pixels(20e9), 300);
}

TEST(Scale, Quantities) {
  const AxisUnit ms = unit_of_seconds(1);
  EXPECT_EQ(quantity(0, ms), "0 ms");
  EXPECT_EQ(quantity(0.0012345, ms), "1.23 ms");
  EXPECT_EQ(quantity(0.012345, ms), "12.3 ms");
  EXPECT_EQ(quantity(0.12345, ms), "123.5 ms");
  EXPECT_EQ(quantity(12.3456, ms), "12,346 ms");
}

RC_GTEST_PROP(Scale, LabelsStandApartAndStepsAreRound, ()) {
  const double largest = std::pow(10.0, *rc::gen::inRange(-100, 1500) / 100.0);
  const double room = *rc::gen::inRange(150, 800);
  const Scale scale = Scale::with_labels_in_a_row(largest, unit_of_bytes(largest), room, 11);
  const std::vector<Scale::Tick> ticks = scale.ticks();
  RC_ASSERT(ticks.size() >= 2U);
  RC_ASSERT(ticks.back().pixels <= room + 1e-6);
  for (std::size_t i = 1; i < ticks.size(); ++i) {
    const double widths = text_width(ticks[i - 1].label, {.size = 11}) + text_width(ticks[i].label, {.size = 11});
    RC_ASSERT(ticks[i].pixels - ticks[i - 1].pixels > widths / 2);
    RC_ASSERT(ticks[i].label != ticks[i - 1].label);
  }
}

RC_GTEST_PROP(Scale, ARoundStepIsTheLeastThatIsEnough, ()) {
  const double least = std::pow(10.0, *rc::gen::inRange(-1200, 1200) / 100.0);
  const double step = round_step(least);
  RC_ASSERT(step >= least);
  RC_ASSERT(step <= least * 2.5 * (1 + 1e-9));
  const double leading = step / std::pow(10.0, std::floor(std::log10(step) + 1e-9));
  RC_ASSERT(std::abs(leading - 1) < 1e-6 || std::abs(leading - 2) < 1e-6 || std::abs(leading - 5) < 1e-6);
}

}  // namespace
}  // namespace shardplan::report
