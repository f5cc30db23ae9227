#include "tools/report/stage_chart.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "tests/tools/report/chart_checks.h"

namespace shardplan::report {
namespace {

// The example of the ZeRO paper: 7.5 billion parameters on 64 GPUs, in 16-bit mixed precision with Adam.
StageChart zero_paper() {
  constexpr double kPsi = 7.5e9;
  StageChart chart{.title = "ZeRO, figure 1", .capacity = 80_GB};
  for (int stage = 0; stage < 4; ++stage) {
    StageBar bar{.label = "stage " + std::to_string(stage)};
    const auto share = [&](int from, double bytes) {
      return Bytes{static_cast<std::uint64_t>(stage >= from ? bytes / 64 : bytes)};
    };
    bar.memory[MemoryClass::parameters] = share(3, 2 * kPsi);
    bar.memory[MemoryClass::gradients] = share(2, 2 * kPsi);
    bar.memory[MemoryClass::optimizer_states] = share(1, 12 * kPsi);
    bar.sent = Bytes{static_cast<std::uint64_t>((stage == 3 ? 3 : 2) * 2 * kPsi * 63 / 64)};
    bar.compute_seconds = 0.5;
    bar.exposed_seconds = stage == 3 ? 0.125 : 0.01;
    chart.bars.push_back(bar);
  }
  return chart;
}

TEST(StageChart, PrintsTheNumbersOfThePaper) {
  const XmlElement root = checked_chart(stage_chart(zero_paper()));
  for (const char* text : {"120.00 GB", "31.41 GB", "16.64 GB", "1.88 GB", "44.30 GB", "625.0 ms", "125.0 exposed"}) {
    text_saying(root, text);
  }
  for (const char* text : {"stage 0", "stage 1", "stage 2", "stage 3", "Memory per GPU, at the peak",
                           "Sent per GPU and step", "Time of a step", "ms (milliseconds)", "too much"}) {
    text_saying(root, text);
  }
  EXPECT_FALSE(says(root, "activations")) << "a class that is never held is in no legend";
}

TEST(StageChart, BarsAreStackedToScale) {
  const XmlElement root = checked_chart(stage_chart(zero_paper()));
  const XmlElement parameters = shape(root, "rect", "parameters: 15.0 GB");
  const XmlElement states = shape(root, "rect", "optimizer states: 90.0 GB");
  const XmlElement gradients = shape(root, "rect", "gradients: 15.0 GB");
  EXPECT_NEAR(states.number("width"), 6 * parameters.number("width"), 0.04);
  EXPECT_NEAR(gradients.number("width"), parameters.number("width"), 0.02);
  EXPECT_NEAR(states.number("x"), parameters.number("x") + parameters.number("width"), 0.02);
  EXPECT_NEAR(gradients.number("x"), states.number("x") + states.number("width"), 0.02);
  EXPECT_EQ(parameters.number("y"), states.number("y"));
  const double gb = states.number("width") / 90;
  EXPECT_NEAR(text_saying(root, "100").number("x"), parameters.number("x") + 100 * gb, 0.1);
  const XmlElement sent = shape(root, "rect", "sent: 29.5 GB");
  const XmlElement more = shape(root, "rect", "sent: 44.3 GB");
  EXPECT_NEAR(more.number("width"), 1.5 * sent.number("width"), 0.02);
  const XmlElement compute = shape(root, "rect", "compute: 500.0 ms");
  const XmlElement exposed = shape(root, "rect", "exposed communication: 125.0 ms");
  EXPECT_NEAR(compute.number("width"), 4 * exposed.number("width"), 0.04);
  EXPECT_NEAR(exposed.number("x"), compute.number("x") + compute.number("width"), 0.02);
  EXPECT_GT(exposed.number("y"), compute.number("y")) << "the last stage is the lowest bar";
}

TEST(StageChart, ShowsTheCapacity) {
  StageChart chart = zero_paper();
  const auto capacity_lines = [](const XmlElement& root) {
    std::vector<double> found;
    for (const XmlElement& line : elements(root, "line")) {
      if (line.attributes.contains("stroke-dasharray") && line.number("x1") == line.number("x2")) {
        found.push_back(line.number("x1"));
      }
    }
    return found;
  };
  const XmlElement root = checked_chart(stage_chart(chart));
  const XmlElement states = shape(root, "rect", "optimizer states: 90.0 GB");
  ASSERT_EQ(capacity_lines(root).size(), 1U);
  const double left = shape(root, "rect", "parameters: 15.0 GB").number("x");
  EXPECT_NEAR(capacity_lines(root)[0] - left, states.number("width") * 80 / 90, 0.05);
  chart.capacity = 120_GB;
  EXPECT_FALSE(says(checked_chart(stage_chart(chart)), "too much"));
  chart.capacity = 600_GB;
  EXPECT_TRUE(capacity_lines(checked_chart(stage_chart(chart))).empty());
  chart.capacity.reset();
  EXPECT_FALSE(says(checked_chart(stage_chart(chart)), "GPU's capacity"));
}

TEST(StageChart, Extremes) {
  StageChart chart{.title = ""};
  checked_chart(stage_chart(chart));
  chart.bars.resize(4);
  const XmlElement zero = checked_chart(stage_chart(chart));
  const auto count_saying = [&](std::string_view text) {
    const auto texts = elements(zero, "text");
    return std::count_if(texts.begin(), texts.end(), [&](const XmlElement& element) { return element.text == text; });
  };
  EXPECT_EQ(count_saying("0 B"), 8);
  EXPECT_EQ(count_saying("0 ms"), 4);
  EXPECT_EQ(count_saying("0 exposed"), 4);
  chart.bars[1].label = chart.bars[2].note = chart.title = chart.subtitle = std::string(500, 'W') + "<&>\xff";
  for (std::size_t i = 0; i < kMemoryClasses; ++i) {
    chart.bars[1].memory[static_cast<MemoryClass>(i)] = 1'000'000_GB;
    chart.bars[2].memory[static_cast<MemoryClass>(i)] = 1_B;
  }
  chart.bars[2].sent = 1'000'000_GB;
  chart.bars[3].compute_seconds = 1e6;
  chart.bars[3].exposed_seconds = 1e-9;
  chart.capacity = 80_GB;
  EXPECT_TRUE(says(checked_chart(stage_chart(chart)), "6000000.00 GB"));
}

TEST(StageChart, WaitingIsDrawnWhereThereIsAny) {
  StageChart chart = zero_paper();
  EXPECT_FALSE(says(checked_chart(stage_chart(chart)), "waiting"));
  chart.bars[3].waiting_seconds = 0.75;
  EXPECT_TRUE(says(checked_chart(stage_chart(chart)), "waiting"));
  chart.bars[3].waiting_seconds = -1;
  EXPECT_THROW(stage_chart(chart), CheckFailure);
}

TEST(StageChart, RefusesTimesThatAreNone) {
  for (const double seconds : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    StageChart chart = zero_paper();
    chart.bars[2].exposed_seconds = seconds;
    EXPECT_THROW(stage_chart(chart), CheckFailure);
  }
}

RC_GTEST_PROP(StageChart, NoTextIsOverAnother, ()) {
  StageChart chart{.title = "Llama-2-7B on 64 GPUs", .subtitle = "bf16-mixed"};
  const auto value = [](int from, int to) {
    return *rc::gen::element(0.0, 1.0) * std::pow(10.0, *rc::gen::inRange(from, to) / 100.0);
  };
  const auto bytes = [&] { return Bytes{static_cast<std::uint64_t>(value(0, 1500))}; };
  for (int i = *rc::gen::inRange(0, 6); i > 0; --i) {
    StageBar bar{.label = "stage 3", .note = *rc::gen::element<std::string>("", "DDP", "hybrid, 8 in a node")};
    for (const MemoryClass which : kStackOrder) bar.memory[which] = bytes();
    bar.sent = bytes();
    bar.compute_seconds = value(-900, 500);
    bar.exposed_seconds = value(-900, 500);
    chart.bars.push_back(bar);
  }
  if (*rc::gen::arbitrary<bool>()) chart.capacity = bytes();
  const std::string svg = stage_chart(chart);
  checked_chart(svg);
  RC_ASSERT(!testing::Test::HasFailure());
  RC_ASSERT(svg == stage_chart(chart));
}

}  // namespace
}  // namespace shardplan::report
