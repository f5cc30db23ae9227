#include "tools/report/memory_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "tools/report/scale.h"
#include "tools/report/svg.h"

namespace shardplan::report {
namespace {

constexpr SvgSize kSize{900, 440};
constexpr double kMargin = 20;
constexpr double kLegendWidth = 256;
constexpr double kPlotRight = kSize.width - kMargin - kLegendWidth - 16;
constexpr double kPlotTop = 104;
constexpr double kPlotBottom = 372;
constexpr double kPhaseHeight = 18;
// A capacity this many times the peak would leave the areas too low to read.
constexpr double kHighestCapacity = 4;

double count_of(Bytes bytes) {
  return static_cast<double>(bytes.count());
}

struct Peak {
  double seconds = 0;
  MemoryByClass bytes{};
  Bytes total{};
};

Peak peak_of(const MemoryChart& chart) {
  Peak peak;
  for (const MemorySample& sample : chart.samples) {
    const Bytes total = sample.bytes.total();
    if (&sample == chart.samples.data() || total > peak.total) peak = {sample.seconds, sample.bytes, total};
  }
  return peak;
}

void check_times(const MemoryChart& chart) {
  double last = 0;
  for (const MemorySample& sample : chart.samples) {
    SHARDPLAN_CHECK(sample.seconds >= last, fmt::format("a sample at {} s after one at {} s", sample.seconds, last));
    last = sample.seconds;
  }
  SHARDPLAN_CHECK(chart.end_seconds >= last && std::isfinite(chart.end_seconds),
                  fmt::format("the step ends at {} s, the last sample is at {} s", chart.end_seconds, last));
  last = 0;
  for (const MemoryPhase& phase : chart.phases) {
    SHARDPLAN_CHECK(phase.begin >= last && phase.end >= phase.begin && phase.end <= chart.end_seconds,
                    fmt::format("phase {} is not after the one before it and within the step", phase.name));
    last = phase.end;
  }
}

// Where things are.
struct Plot {
  Scale x;
  Scale y;
  double left;
  double right_of(double seconds) const { return left + x.pixels(seconds); }
  double above(double bytes) const { return kPlotBottom - y.pixels(bytes); }
  bool shows(Bytes bytes) const { return above(count_of(bytes)) >= kPlotTop; }
};

Plot plot_of(const MemoryChart& chart, Bytes peak) {
  constexpr double kHeadroom = 1.06;
  double highest = count_of(peak);
  const double capacity = count_of(chart.capacity.value_or(Bytes{}));
  if (highest == 0 || capacity <= kHighestCapacity * highest) highest = std::max(highest, capacity);
  highest *= kHeadroom;
  const Scale y(highest, unit_of_bytes(highest), kPlotBottom - kPlotTop, 30);
  double widest = 0;
  for (const Scale::Tick& tick : y.ticks()) widest = std::max(widest, text_width(tick.label, {}));
  const double left = kMargin + 18 + widest + 8;
  return {Scale::with_labels_in_a_row(chart.end_seconds, unit_of_seconds(chart.end_seconds), kPlotRight - left, 12), y,
          left};
}

void draw_axes(Svg& svg, const Plot& plot, bool has_phases) {
  for (const Scale::Tick& tick : plot.y.ticks()) {
    const double y = kPlotBottom - tick.pixels;
    svg.line({plot.left, y}, {kPlotRight, y}, {.colour = kGrid});
    svg.text({plot.left - 8, y + 4}, tick.label, {.anchor = SvgAnchor::end});
  }
  const double below = kPlotBottom + (has_phases ? kPhaseHeight : 0);
  for (const Scale::Tick& tick : plot.x.ticks()) {
    const double x = plot.left + tick.pixels;
    svg.line({x, below}, {x, below + 5}, {});
    svg.text({x, below + 19}, tick.label, {.anchor = SvgAnchor::middle});
  }
  svg.text({(plot.left + kPlotRight) / 2, below + 40}, fmt::format("time in the step ({})", plot.x.unit().name),
           {.anchor = SvgAnchor::middle});
  svg.text({kMargin + 10, (kPlotTop + kPlotBottom) / 2},
           fmt::format("memory ({}, {})", plot.y.unit().name, plot.y.unit().meaning),
           {.anchor = SvgAnchor::middle, .upward = true});
}

struct Step {
  double x;
  const MemoryByClass* bytes;
};

// The samples as they are drawn: those within one pixel of the first of them are one, the greatest, followed by the
// last of them, which is what lasts.
std::vector<Step> steps_of(const std::vector<MemorySample>& samples, const Plot& plot) {
  std::vector<Step> steps;
  for (auto first = samples.begin(); first != samples.end();) {
    const double x = plot.right_of(first->seconds);
    const auto next = std::find_if(first, samples.end(),
                                   [&](const MemorySample& sample) { return plot.right_of(sample.seconds) >= x + 1; });
    const auto greatest = std::max_element(
        first, next, [](const MemorySample& a, const MemorySample& b) { return a.bytes.total() < b.bytes.total(); });
    const auto last = std::prev(next);
    steps.push_back({x, &greatest->bytes});
    if (last != greatest) steps.push_back({std::min(x + 1, kPlotRight), &last->bytes});
    first = next;
  }
  return steps;
}

// The outline of everything up to the class of that place in the stack, down to the axis.
std::string outline(const std::vector<Step>& steps, const Plot& plot, double end_seconds, std::size_t place) {
  const std::string bottom = svg_number(kPlotBottom);
  std::string data = fmt::format("M{} {}", svg_number(steps.front().x), bottom);
  std::string last = bottom;
  for (const Step& step : steps) {
    double bytes = 0;
    for (std::size_t below = 0; below <= place; ++below) bytes += count_of((*step.bytes)[kStackOrder[below]]);
    std::string y = svg_number(plot.above(bytes));
    if (y == last) continue;
    data += fmt::format("H{}V{}", svg_number(step.x), y);
    last = std::move(y);
  }
  return data + fmt::format("H{}V{}Z", svg_number(plot.right_of(end_seconds)), bottom);
}

bool ever_held(const MemoryChart& chart, MemoryClass which) {
  return std::any_of(chart.samples.begin(), chart.samples.end(),
                     [&](const MemorySample& sample) { return sample.bytes[which] > Bytes{}; });
}

// From the top of the stack to its bottom, each over the one before, so that no gap shows between them.
void draw_areas(Svg& svg, const MemoryChart& chart, const Plot& plot) {
  if (chart.samples.empty()) return;
  const std::vector<Step> steps = steps_of(chart.samples, plot);
  for (std::size_t place = kMemoryClasses; place-- > 0;) {
    const MemoryClass which = kStackOrder[place];
    if (!ever_held(chart, which)) continue;
    svg.area(outline(steps, plot, chart.end_seconds, place), colour(which), name(which));
  }
}

void draw_phases(Svg& svg, const MemoryChart& chart, const Plot& plot) {
  bool odd = false;
  for (const MemoryPhase& phase : chart.phases) {
    const double from = plot.right_of(phase.begin);
    const double width = plot.right_of(phase.end) - from;
    svg.rectangle({from, kPlotBottom}, {width, kPhaseHeight}, odd ? "#e6e9ed" : "#f3f4f6", phase.name);
    const SvgText style{.size = 11, .colour = kDimInk, .anchor = SvgAnchor::middle};
    if (text_width(phase.name, style) + 6 <= width) svg.text({from + width / 2, kPlotBottom + 13}, phase.name, style);
    odd = !odd;
  }
}

void draw_peak(Svg& svg, const MemoryChart& chart, const Plot& plot, const Peak& peak) {
  if (chart.samples.empty()) return;
  const SvgPoint at{plot.right_of(peak.seconds), plot.above(count_of(peak.total))};
  const double room = kPlotRight - plot.left;
  std::string label = fmt::format("peak {}", in_gb(peak.total));
  if (!chart.peak_at.empty()) label += ", " + chart.peak_at;
  const SvgText style{.size = 13, .bold = true, .room = room};
  const double half = std::min(text_width(label, style), room) / 2;
  const double middle = std::min(std::max(at.x, plot.left + half), kPlotRight - half);  // as wide as the plot at most
  SvgText centred = style;
  centred.anchor = SvgAnchor::middle;
  svg.line({at.x, kPlotTop - 10}, at, {.colour = kInk, .dashes = "1 3"});
  svg.dot(at, 4.5);
  svg.text({middle, kPlotTop - 16}, label, centred);
}

struct LegendRow {
  std::string_view name{};
  Bytes bytes{};
  std::string_view colour{};  // empty: no swatch
};

void draw_row(Svg& svg, const LegendRow& row, double y, std::string_view ink, bool bold) {
  constexpr double kLeft = kSize.width - kMargin - kLegendWidth;
  constexpr double kRight = kSize.width - kMargin;
  if (!row.colour.empty()) svg.rectangle({kLeft, y - 10}, {12, 12}, row.colour);
  const std::string value = in_gb(row.bytes);
  const SvgText value_style{.bold = bold, .colour = ink, .anchor = SvgAnchor::end};
  svg.text({kRight, y}, value, value_style);
  svg.text({kLeft + 20, y}, row.name,
           {.bold = bold, .colour = ink, .room = kRight - kLeft - 28 - text_width(value, value_style)});
}

// In the order of the stack, with what each class holds at the peak.
void draw_legend(Svg& svg, const MemoryChart& chart, const Plot& plot, const Peak& peak) {
  constexpr double kLeft = kSize.width - kMargin - kLegendWidth;
  constexpr double kRight = kSize.width - kMargin;
  constexpr double kRowHeight = 24;
  double y = kPlotTop + 12;
  svg.text({kRight, y}, "at the peak", {.colour = kDimInk, .anchor = SvgAnchor::end});
  for (std::size_t place = kMemoryClasses; place-- > 0;) {
    const MemoryClass which = kStackOrder[place];
    if (!ever_held(chart, which)) continue;
    draw_row(svg, {name(which), peak.bytes[which], colour(which)}, y += kRowHeight, kInk, false);
  }
  y += 8;
  svg.line({kLeft, y}, {kRight, y}, {.colour = kGrid});
  draw_row(svg, {"total", peak.total, {}}, y += kRowHeight - 4, kInk, true);
  if (!chart.capacity) return;
  y += kRowHeight;
  draw_row(svg, {"GPU's capacity", *chart.capacity, {}}, y, peak.total > *chart.capacity ? kAlarm : kInk, false);
  svg.line({kLeft - 2, y - 4}, {kLeft + 14, y - 4}, {.colour = kInk, .width = 1.5, .dashes = "6 4"});
  if (!plot.shows(*chart.capacity)) {
    svg.text({kRight, y + 16}, "(above the axis)", {.size = 11, .colour = kDimInk, .anchor = SvgAnchor::end});
  }
}

}  // namespace

std::string memory_chart(const MemoryChart& chart) {
  check_times(chart);
  const Peak peak = peak_of(chart);
  const Plot plot = plot_of(chart, peak.total);
  const double room = kSize.width - 2 * kMargin;
  std::string description = fmt::format("Memory by class over one training step. Peak {}", in_gb(peak.total));
  if (!chart.peak_at.empty()) description += ", " + chart.peak_at;
  Svg svg(kSize, chart.title, description + ".");
  svg.text({kMargin, 36}, chart.title, {.size = 17, .bold = true, .room = room});
  if (!chart.subtitle.empty()) svg.text({kMargin, 57}, chart.subtitle, {.size = 13, .colour = kDimInk, .room = room});
  draw_axes(svg, plot, !chart.phases.empty());
  draw_areas(svg, chart, plot);
  draw_phases(svg, chart, plot);
  svg.line({plot.left, kPlotBottom}, {kPlotRight, kPlotBottom}, {});
  if (chart.capacity && plot.shows(*chart.capacity)) {
    const double y = plot.above(count_of(*chart.capacity));
    svg.line({plot.left, y}, {kPlotRight, y}, {.colour = kInk, .width = 1.5, .dashes = "6 4"});
  }
  draw_peak(svg, chart, plot, peak);
  draw_legend(svg, chart, plot, peak);
  return std::move(svg).finish();
}

}  // namespace shardplan::report
