// Axes and the numbers on them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shardplan::report {

// What numbers on an axis count, the same for all of them.
struct AxisUnit {
  std::string_view name;     // "GB"
  std::string_view meaning;  // "1e9 bytes"
  double size = 1;           // in bytes or seconds
};

// GB from 0.1 GB on, milliseconds from 0.1 ms on; smaller units below, so that an axis never counts in ten-thousandths.
AxisUnit unit_of_bytes(double largest);
AxisUnit unit_of_seconds(double largest);

// "1,234 ms", "123.4 ms", "12.3 ms", "1.23 ms"; "0 ms".
std::string quantity(double seconds, const AxisUnit& unit);
// The same without the unit.
std::string number_of(double value, const AxisUnit& unit);

// 1, 2 or 5 times a power of ten: the smallest that is at least `least`, which is positive.
double round_step(double least);

// The label of a tick: as many decimals as the step needs, commas between thousands.
std::string tick_label(double value, double step);

// A linear map from [0, largest] to `room` pixels, with ticks at the multiples of a round step.
class Scale {
 public:
  // `spacing`: least distance of two ticks in pixels.
  Scale(double largest, AxisUnit unit, double room, double spacing);
  // As above with the spacing that keeps labels of this font size apart when they stand side by side.
  static Scale with_labels_in_a_row(double largest, AxisUnit unit, double room, double font_size);

  double pixels(double value) const;  // of a value in bytes or seconds
  const AxisUnit& unit() const { return unit_; }

  struct Tick {
    double pixels = 0;
    std::string label;
  };
  std::vector<Tick> ticks() const;

 private:
  double largest_;  // in units; positive
  AxisUnit unit_;
  double room_;
  double step_;
};

}  // namespace shardplan::report
