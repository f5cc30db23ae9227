#include "tools/report/scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "base/text.h"
#include "tools/report/svg.h"

namespace shardplan::report {
namespace {

constexpr std::array<AxisUnit, 4> kByteUnits{
    {{"GB", "1e9 bytes", 1e9}, {"MB", "1e6 bytes", 1e6}, {"kB", "1e3 bytes", 1e3}, {"B", "bytes", 1}}};
constexpr std::array<AxisUnit, 3> kTimeUnits{
    {{"ms", "milliseconds", 1e-3}, {"µs", "microseconds", 1e-6}, {"ns", "nanoseconds", 1e-9}}};

AxisUnit unit_of(double largest, std::span<const AxisUnit> units) {
  if (largest <= 0) return units.front();
  for (const AxisUnit& unit : units) {
    if (largest >= 0.1 * unit.size) return unit;
  }
  return units.back();
}

std::string with_decimals(double value, int decimals) {
  const std::string digits = fmt::format("{:.{}f}", value, decimals);
  const std::size_t whole = digits.find('.');
  // Beyond this a number has more digits than a chart has room for, and than 64 bits count.
  if (value >= 1e15) return fmt::format("{:.2e}", value);
  return with_commas(std::stoull(digits.substr(0, whole))) + (whole == std::string::npos ? "" : digits.substr(whole));
}

}  // namespace

AxisUnit unit_of_bytes(double largest) {
  return unit_of(largest, kByteUnits);
}

AxisUnit unit_of_seconds(double largest) {
  return unit_of(largest, kTimeUnits);
}

std::string number_of(double value, const AxisUnit& unit) {
  const double number = value / unit.size;
  if (number == 0) return "0";
  return with_decimals(number, number < 10 ? 2 : number < 1000 ? 1 : 0);
}

std::string quantity(double seconds, const AxisUnit& unit) {
  return fmt::format("{} {}", number_of(seconds, unit), unit.name);
}

double round_step(double least) {
  const double power = std::pow(10.0, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= least) return factor * power;
  }
  return 10 * power;
}

std::string tick_label(double value, double step) {
  if (value == 0) return "0";
  const int decimals = std::max(0, -static_cast<int>(std::floor(std::log10(step) + 1e-9)));
  return with_decimals(value, decimals);
}

Scale::Scale(double largest, AxisUnit unit, double room, double spacing)
    : largest_(largest > 0 ? largest / unit.size : 1),
      unit_(unit),
      room_(room),
      step_(round_step(largest_ * std::min(1.0, spacing / room))) {}

Scale Scale::with_labels_in_a_row(double largest, AxisUnit unit, double room, double font_size) {
  constexpr double kGap = 12;
  // A wider spacing has a larger step, whose labels are no longer: the first that fits is the densest.
  for (double spacing = 24;; spacing += 4) {
    const Scale scale(largest, unit, room, spacing);
    double widest = 0;
    for (const Tick& tick : scale.ticks()) widest = std::max(widest, text_width(tick.label, {.size = font_size}));
    if (scale.pixels(scale.step_ * unit.size) >= widest + kGap || spacing >= room) return scale;
  }
}

double Scale::pixels(double value) const {
  return value / unit_.size / largest_ * room_;
}

std::vector<Scale::Tick> Scale::ticks() const {
  std::vector<Tick> ticks;
  const auto count = static_cast<int>(std::floor(largest_ / step_ + 1e-9));
  for (int i = 0; i <= count; ++i) {
    const double value = i * step_;
    ticks.push_back({value / largest_ * room_, tick_label(value, step_)});
  }
  return ticks;
}

}  // namespace shardplan::report
