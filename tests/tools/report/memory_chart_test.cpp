#include "tools/report/memory_chart.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <sstream>

#include "base/error.h"
#include "tests/tools/report/chart_checks.h"

namespace shardplan::report {
namespace {

MemoryByClass held(std::array<double, kMemoryClasses> bytes) {
  MemoryByClass held;
  for (std::size_t i = 0; i < kMemoryClasses; ++i) {
    held[static_cast<MemoryClass>(i)] = Bytes{static_cast<std::uint64_t>(bytes[i])};
  }
  return held;
}

// Parameters 2 GB all the time; activations 0, 8, 4 GB in thirds of 300 ms.
MemoryChart thirds() {
  MemoryChart chart{.title = "Thirds"};
  chart.samples = {
      {0, held({2e9, 0, 0, 0, 0, 0})}, {0.1, held({2e9, 0, 0, 0, 0, 8e9})}, {0.2, held({2e9, 0, 0, 0, 0, 4e9})}};
  chart.end_seconds = 0.3;
  chart.peak_at = "backward of model.layers.30";
  return chart;
}

// The corners of an outline: M x y, then H and V in turn, as SVG defines them.
std::vector<std::pair<double, double>> corners(const XmlElement& path) {
  std::istringstream data(path.attribute("d"));
  std::vector<std::pair<double, double>> corners;
  double x = 0;
  double y = 0;
  for (char command = 0; data >> command && command != 'Z';) {
    if (command == 'M') data >> x >> y;
    if (command == 'H') data >> x;
    if (command == 'V') data >> y;
    corners.emplace_back(x, y);
  }
  EXPECT_TRUE(data) << path.attribute("d");
  return corners;
}

TEST(MemoryChart, AreasStandWhereTheNumbersSay) {
  const XmlElement root = checked_chart(memory_chart(thirds()));
  const auto parameters = corners(shape(root, "path", "parameters"));
  const auto all = corners(shape(root, "path", "activations"));
  ASSERT_EQ(parameters.size(), 5U);
  ASSERT_EQ(all.size(), 9U);
  const double left = parameters[0].first;
  const double right = parameters[3].first;
  const double bottom = parameters[0].second;
  const double gb = (bottom - parameters[2].second) / 2;
  // y: the activations are stacked on the parameters. Coordinates have two decimals.
  EXPECT_NEAR(bottom - all[2].second, 2 * gb, 0.05);
  EXPECT_NEAR(bottom - all[4].second, 10 * gb, 0.05);
  EXPECT_NEAR(bottom - all[6].second, 6 * gb, 0.05);
  EXPECT_NEAR(all[4].first, left + (right - left) / 3, 0.01);
  EXPECT_NEAR(all[6].first, left + (right - left) * 2 / 3, 0.01);
  EXPECT_EQ(all[8], std::pair(right, bottom));
  // The labels of the axes agree with the areas.
  const XmlElement ten = text_saying(root, "10");
  EXPECT_NEAR(ten.number("y") - 4, bottom - 10 * gb, 0.05);
  const XmlElement ms = text_saying(root, "200");
  EXPECT_NEAR(ms.number("x"), all[6].first, 0.01);
  EXPECT_TRUE(says(root, "time in the step (ms)"));
  EXPECT_TRUE(says(root, "memory (GB, 1e9 bytes)"));
}

TEST(MemoryChart, MarksThePeak) {
  const XmlElement root = checked_chart(memory_chart(thirds()));
  const auto all = corners(shape(root, "path", "activations"));
  const XmlElement dot = elements(root, "circle").at(0);
  EXPECT_EQ(dot.number("cx"), all[4].first);
  EXPECT_EQ(dot.number("cy"), all[4].second);
  EXPECT_TRUE(says(root, "peak 10.00 GB, backward of model.layers.30"));
  text_saying(root, "8.00 GB");   // the legend, per class
  text_saying(root, "10.00 GB");  // and in sum
  EXPECT_FALSE(says(root, "gradients")) << "a class that is never held is in no legend";
}

TEST(MemoryChart, ShowsTheCapacity) {
  MemoryChart chart = thirds();
  const auto dashed = [](const XmlElement& root) {
    std::vector<XmlElement> found;
    for (const XmlElement& line : elements(root, "line")) {
      if (line.attributes.contains("stroke-dasharray") && line.number("x2") - line.number("x1") > 300) {
        found.push_back(line);
      }
    }
    return found;
  };
  EXPECT_TRUE(dashed(checked_chart(memory_chart(chart))).empty());
  for (const double capacity : {5e9, 10e9, 24e9, 40e9}) {
    chart.capacity = Bytes{static_cast<std::uint64_t>(capacity)};
    const XmlElement root = checked_chart(memory_chart(chart));
    const auto parameters = corners(shape(root, "path", "parameters"));
    const double gb = (parameters[0].second - parameters[2].second) / 2;
    ASSERT_EQ(dashed(root).size(), 1U) << capacity;
    EXPECT_NEAR(dashed(root)[0].number("y1"), parameters[0].second - gb * capacity / 1e9, 0.2);
    EXPECT_FALSE(says(root, "(above the axis)"));
  }
  chart.capacity = 80_GB;
  const XmlElement root = checked_chart(memory_chart(chart));
  EXPECT_TRUE(dashed(root).empty());
  EXPECT_TRUE(says(root, "(above the axis)"));
  EXPECT_TRUE(says(root, "80.00 GB"));
}

TEST(MemoryChart, NamesThePhasesThatHaveRoom) {
  MemoryChart chart = thirds();
  chart.phases = {{"forward", 0, 0.1}, {"backward", 0.1, 0.299}, {"update", 0.299, 0.3}};
  const XmlElement root = checked_chart(memory_chart(chart));
  const XmlElement forward = shape(root, "rect", "forward");
  EXPECT_NEAR(text_saying(root, "forward").number("x"), forward.number("x") + forward.number("width") / 2, 0.01);
  EXPECT_NEAR(shape(root, "rect", "backward").number("x"), forward.number("x") + forward.number("width"), 0.02);
  EXPECT_FALSE(says(root, "update"));
  shape(root, "rect", "update");
}

TEST(MemoryChart, AShortPeakAmongManySamplesIsDrawn) {
  MemoryChart chart{.title = "Many"};
  constexpr int kSamples = 200'000;
  for (int i = 0; i < kSamples; ++i) {
    chart.samples.push_back({i * 1e-6, held({1e9, 0, 0, 0, 0, i == 123'457 ? 9e9 : 1e9 + i % 7 * 1e8})});
  }
  chart.end_seconds = kSamples * 1e-6;
  const std::string svg = memory_chart(chart);
  EXPECT_LT(svg.size(), 100'000U);
  const XmlElement root = checked_chart(svg);
  const auto all = corners(shape(root, "path", "activations"));
  const double dot = elements(root, "circle").at(0).number("cy");
  EXPECT_EQ(std::min_element(all.begin(), all.end(), [](auto a, auto b) { return a.second < b.second; })->second, dot);
}

// Two samples within a pixel: what lasts is the second.
TEST(MemoryChart, ASpikeDoesNotLast) {
  MemoryChart chart{.title = "Spike"};
  chart.samples = {{0, held({9e9, 0, 0, 0, 0, 0})}, {1e-9, held({1e9, 0, 0, 0, 0, 0})}};
  chart.end_seconds = 1;
  const auto outline = corners(shape(checked_chart(memory_chart(chart)), "path", "parameters"));
  ASSERT_EQ(outline.size(), 7U);
  EXPECT_NEAR(outline[4].first, outline[0].first + 1, 0.011);
  EXPECT_NEAR((outline[0].second - outline[4].second) * 9, outline[0].second - outline[2].second, 0.1);
}

TEST(MemoryChart, Extremes) {
  MemoryChart chart{.title = "Nothing"};
  EXPECT_TRUE(elements(checked_chart(memory_chart(chart)), "circle").empty());
  chart.samples = {{0, {}}};
  EXPECT_TRUE(says(checked_chart(memory_chart(chart)), "peak 0 B"));
  chart.capacity = 80_GB;
  checked_chart(memory_chart(chart));
  chart.samples = {{0, held({1e15, 1e15, 1e15, 1e15, 1e15, 1e15})}};
  chart.end_seconds = 1e5;
  chart.title = chart.subtitle = chart.peak_at = std::string(3000, 'W') + "<&>\xff";
  chart.phases = {{chart.title, 0, 1e5}};
  const XmlElement root = checked_chart(memory_chart(chart));
  EXPECT_TRUE(says(root, "6000000.00 GB"));
  chart.samples = {{0, held({1, 0, 0, 0, 0, 0})}};
  chart.capacity = Bytes{1};
  chart.phases.clear();
  chart.end_seconds = 1e-9;
  checked_chart(memory_chart(chart));
}

TEST(MemoryChart, RefusesTimesOutOfOrder) {
  const auto expect_refused = [](const auto& change) {
    MemoryChart chart = thirds();
    change(chart);
    EXPECT_THROW(memory_chart(chart), CheckFailure);
  };
  expect_refused([](MemoryChart& chart) { chart.samples[0].seconds = -1; });
  expect_refused([](MemoryChart& chart) { chart.samples[1].seconds = 0.25; });
  expect_refused([](MemoryChart& chart) { chart.samples[1].seconds = std::nan(""); });
  expect_refused([](MemoryChart& chart) { chart.end_seconds = 0.19; });
  expect_refused([](MemoryChart& chart) { chart.phases = {{"a", 0, 0.4}}; });
  expect_refused([](MemoryChart& chart) { chart.phases = {{"a", 0, 0.2}, {"b", 0.1, 0.3}}; });
}

RC_GTEST_PROP(MemoryChart, NoTextIsOverAnother, ()) {
  MemoryChart chart{.title = "Llama-2-7B, ZeRO stage 3 on 8 GPUs", .subtitle = "bf16-mixed"};
  const auto bytes = [] { return *rc::gen::element(0.0, 1.0) * std::pow(10.0, *rc::gen::inRange(0, 1500) / 100.0); };
  double now = 0;
  for (int i = *rc::gen::inRange(0, 40); i > 0; --i) {
    chart.samples.push_back({now, held({bytes(), bytes(), bytes(), bytes(), bytes(), bytes()})});
    now += *rc::gen::inRange(0, 100) * 1e-4;
  }
  chart.end_seconds = now;
  chart.phases = {{"forward", 0, now / 3}, {"backward", now / 3, now * 0.95}, {"update", now * 0.95, now}};
  chart.peak_at = *rc::gen::element<std::string>("", "update", "backward of model.layers.30", std::string(90, 'm'));
  if (*rc::gen::arbitrary<bool>()) chart.capacity = Bytes{static_cast<std::uint64_t>(bytes())};
  const std::string svg = memory_chart(chart);
  checked_chart(svg);
  RC_ASSERT(!testing::Test::HasFailure());
  RC_ASSERT(svg == memory_chart(chart));
}

}  // namespace
}  // namespace shardplan::report
