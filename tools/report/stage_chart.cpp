#include "tools/report/stage_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "tools/report/scale.h"
#include "tools/report/svg.h"

namespace shardplan::report {
namespace {

constexpr double kWidth = 900;
constexpr double kMargin = 20;
constexpr double kLabelWidth = 72;  // the names of the rows
constexpr double kHeadingY = 92;
constexpr double kLegendY = 114;
constexpr double kLegendRow = 19;
constexpr double kRowHeight = 48;
constexpr double kBarHeight = 26;
constexpr double kTickSize = 11;
constexpr double kHighestCapacity = 4;
constexpr std::string_view kSentColour = "#4d4d4d";
constexpr std::string_view kComputeColour = "#a6a6a6";
constexpr std::string_view kWaitingColour = "#e0e0e0";

double count_of(Bytes bytes) {
  return static_cast<double>(bytes.count());
}

struct Segment {
  std::string_view name{};
  double value = 0;
  std::string_view colour{};
};

struct Bar {
  std::vector<Segment> segments{};
  std::string total{};
  std::string remark{};  // under the total; may be empty
  bool alarm = false;    // the remark is one
};

// One of the charts side by side.
struct Panel {
  std::string_view heading{};
  double left = 0;
  double width = 0;
  std::vector<Bar> bars{};
  std::optional<double> mark{};  // a dashed line at this value
  AxisUnit unit{};
};

struct LegendEntry {
  std::string_view name{};
  std::string_view colour{};  // empty: the dashed line
};

constexpr SvgText kTotalStyle{.size = 12, .bold = true, .backed = true};
constexpr SvgText kRemarkStyle{.size = 11, .colour = kDimInk, .backed = true};
constexpr double kBesideBar = 7;

double length_of(const Bar& bar) {
  double sum = 0;
  for (const Segment& segment : bar.segments) sum += segment.value;
  return sum;
}

// The axis ends where the widest label beside a bar of full length still has room.
Scale scale_of(const Panel& panel) {
  double largest = panel.mark.value_or(0);
  double beside = 0;
  for (const Bar& bar : panel.bars) {
    largest = std::max(largest, length_of(bar));
    beside = std::max({beside, text_width(bar.total, kTotalStyle), text_width(bar.remark, kRemarkStyle)});
  }
  const double room = std::max(24.0, panel.width - kBesideBar - beside);
  return Scale::with_labels_in_a_row(largest, panel.unit, room, kTickSize);
}

void draw_bar(Svg& svg, const Panel& panel, const Scale& scale, const Bar& bar, double middle) {
  double value = 0;
  for (const Segment& segment : bar.segments) {
    if (segment.value <= 0) continue;
    const double from = panel.left + scale.pixels(value);
    value += segment.value;
    const double width = panel.left + scale.pixels(value) - from;
    const std::string number = number_of(segment.value, panel.unit);
    svg.rectangle({from, middle - kBarHeight / 2}, {width, kBarHeight}, segment.colour,
                  fmt::format("{}: {} {}", segment.name, number, panel.unit.name));
    const bool dark = segment.colour == colour(MemoryClass::parameters) || segment.colour == kSentColour;
    const SvgText style{.size = 11, .colour = dark ? "#ffffff" : "#000000", .anchor = SvgAnchor::middle};
    if (bar.segments.size() > 1 && text_width(number, style) + 6 <= width) {
      svg.text({from + width / 2, middle + 4}, number, style);
    }
  }
}

void draw_totals(Svg& svg, const Panel& panel, const Scale& scale, const Bar& bar, double middle) {
  const double x = panel.left + scale.pixels(length_of(bar)) + kBesideBar;
  if (bar.remark.empty()) {
    svg.text({x, middle + 4}, bar.total, kTotalStyle);
    return;
  }
  SvgText remark = kRemarkStyle;
  if (bar.alarm) remark.colour = kAlarm;
  svg.text({x, middle - 2}, bar.total, kTotalStyle);
  svg.text({x, middle + 12}, bar.remark, remark);
}

void draw_panel(Svg& svg, const Panel& panel, double top) {
  const Scale scale = scale_of(panel);
  const double bottom = top + kRowHeight * static_cast<double>(panel.bars.size());
  svg.text({panel.left, kHeadingY}, panel.heading, {.size = 13, .bold = true, .room = panel.width});
  for (const Scale::Tick& tick : scale.ticks()) {
    const double x = panel.left + tick.pixels;
    svg.line({x, top}, {x, bottom + 4}, {.colour = kGrid});
    svg.text({x, bottom + 18}, tick.label, {.size = kTickSize, .anchor = SvgAnchor::middle});
  }
  svg.text({panel.left, bottom + 36}, fmt::format("{} ({})", panel.unit.name, panel.unit.meaning),
           {.size = kTickSize, .colour = kDimInk});
  double middle = top + kRowHeight / 2;
  for (const Bar& bar : panel.bars) {
    draw_bar(svg, panel, scale, bar, middle);
    middle += kRowHeight;
  }
  svg.line({panel.left, top}, {panel.left, bottom}, {});
  if (panel.mark) {
    const double x = panel.left + scale.pixels(*panel.mark);
    svg.line({x, top}, {x, bottom}, {.colour = kInk, .width = 1.5, .dashes = "6 4"});
  }
  middle = top + kRowHeight / 2;
  for (const Bar& bar : panel.bars) {
    draw_totals(svg, panel, scale, bar, middle);
    middle += kRowHeight;
  }
}

// Entries side by side in as many rows as they need; returns the number of rows. Draws nothing without `svg`.
int legend(Svg* svg, const std::vector<LegendEntry>& entries, double left, double width) {
  constexpr double kSwatch = 18;
  constexpr double kGap = 14;
  double x = 0;
  int row = 0;
  for (const LegendEntry& entry : entries) {
    const double needed = kSwatch + text_width(entry.name, {});
    if (x > 0 && x + needed > width) {
      x = 0;
      ++row;
    }
    if (svg != nullptr) {
      const double y = kLegendY + kLegendRow * row;
      if (entry.colour.empty()) {
        svg->line({left + x - 2, y - 4}, {left + x + 14, y - 4}, {.colour = kInk, .width = 1.5, .dashes = "6 4"});
      } else {
        svg->rectangle({left + x, y - 10}, {12, 12}, entry.colour);
      }
      svg->text({left + x + kSwatch, y}, entry.name);
    }
    x += needed + kGap;
  }
  return entries.empty() ? 0 : row + 1;
}

Panel memory_panel(const StageChart& chart) {
  Panel panel{.heading = "Memory per GPU, at the peak", .left = kMargin + kLabelWidth, .width = 348};
  Bytes largest;
  for (const StageBar& stage : chart.bars) {
    const Bytes total = stage.memory.total();
    largest = std::max(largest, total);
    Bar bar{.total = in_gb(total)};
    for (const MemoryClass which : kStackOrder) {
      bar.segments.push_back({name(which), count_of(stage.memory[which]), colour(which)});
    }
    bar.alarm = chart.capacity && total > *chart.capacity;
    if (bar.alarm) bar.remark = "too much";
    panel.bars.push_back(std::move(bar));
  }
  double axis = count_of(largest);
  if (chart.capacity && (largest == Bytes{} || count_of(*chart.capacity) <= kHighestCapacity * axis)) {
    panel.mark = count_of(*chart.capacity);
    axis = std::max(axis, *panel.mark);
  }
  panel.unit = unit_of_bytes(axis);
  return panel;
}

Panel sent_panel(const StageChart& chart) {
  Panel panel{.heading = "Sent per GPU and step", .left = 462, .width = 190};
  Bytes largest;
  for (const StageBar& stage : chart.bars) {
    largest = std::max(largest, stage.sent);
    panel.bars.push_back(
        {.segments = {{"sent", count_of(stage.sent), kSentColour}}, .total = in_gb(stage.sent), .remark = {}});
  }
  panel.unit = unit_of_bytes(count_of(largest));
  return panel;
}

double seconds_of(const StageBar& stage) {
  return stage.compute_seconds + stage.exposed_seconds + stage.waiting_seconds;
}

Panel time_panel(const StageChart& chart) {
  Panel panel{.heading = "Time of a step", .left = 672, .width = kWidth - kMargin - 672};
  double largest = 0;
  for (const StageBar& stage : chart.bars) {
    for (const double seconds : {stage.compute_seconds, stage.exposed_seconds, stage.waiting_seconds}) {
      SHARDPLAN_CHECK(seconds >= 0 && std::isfinite(seconds), fmt::format("{} takes {} s", stage.label, seconds));
    }
    largest = std::max(largest, seconds_of(stage));
  }
  panel.unit = unit_of_seconds(largest);
  for (const StageBar& stage : chart.bars) {
    panel.bars.push_back({.segments = {{"compute", stage.compute_seconds, kComputeColour},
                                       {"exposed communication", stage.exposed_seconds, kVermilion},
                                       {"waiting", stage.waiting_seconds, kWaitingColour}},
                          .total = quantity(seconds_of(stage), panel.unit),
                          .remark = fmt::format("{} exposed", number_of(stage.exposed_seconds, panel.unit))});
  }
  return panel;
}

std::vector<LegendEntry> memory_legend(const StageChart& chart, const Panel& panel) {
  std::vector<LegendEntry> entries;
  for (const MemoryClass which : kStackOrder) {
    const bool held = std::any_of(chart.bars.begin(), chart.bars.end(),
                                  [&](const StageBar& bar) { return bar.memory[which] > Bytes{}; });
    if (held) entries.push_back({name(which), colour(which)});
  }
  if (panel.mark) entries.push_back({"GPU's capacity", {}});
  return entries;
}

void draw_row_names(Svg& svg, const StageChart& chart, double top) {
  constexpr double kRoom = kLabelWidth - 6;
  double middle = top + kRowHeight / 2;
  for (const StageBar& bar : chart.bars) {
    svg.text({kMargin, bar.note.empty() ? middle + 4 : middle - 2}, bar.label,
             {.size = 13, .bold = true, .room = kRoom});
    if (!bar.note.empty()) {
      svg.text({kMargin, middle + 12}, bar.note, {.size = 11, .colour = kDimInk, .room = kRoom});
    }
    middle += kRowHeight;
  }
}

}  // namespace

std::string stage_chart(const StageChart& chart) {
  const Panel memory = memory_panel(chart);
  const Panel sent = sent_panel(chart);
  const Panel time = time_panel(chart);
  const std::vector<LegendEntry> classes = memory_legend(chart, memory);
  std::vector<LegendEntry> parts{{"compute", kComputeColour}, {"exposed communication", kVermilion}};
  const bool waits =
      std::any_of(chart.bars.begin(), chart.bars.end(), [](const StageBar& bar) { return bar.waiting_seconds > 0; });
  if (waits) parts.push_back({"waiting", kWaitingColour});
  const double classes_width = sent.left - 20 - kMargin;
  const int rows =
      std::max(legend(nullptr, classes, kMargin, classes_width), legend(nullptr, parts, time.left, time.width));
  const double top = kLegendY + kLegendRow * rows;
  const double height = top + kRowHeight * static_cast<double>(chart.bars.size()) + 54;
  constexpr double kRoom = kWidth - 2 * kMargin;

  Svg svg({kWidth, height}, chart.title, "Memory per GPU by class, bytes sent and step time, for each stage.");
  svg.text({kMargin, 36}, chart.title, {.size = 17, .bold = true, .room = kRoom});
  if (!chart.subtitle.empty()) svg.text({kMargin, 57}, chart.subtitle, {.size = 13, .colour = kDimInk, .room = kRoom});
  legend(&svg, classes, kMargin, classes_width);
  legend(&svg, parts, time.left, time.width);
  draw_row_names(svg, chart, top);
  for (const Panel* panel : {&memory, &sent, &time}) draw_panel(svg, *panel, top);
  return std::move(svg).finish();
}

}  // namespace shardplan::report
