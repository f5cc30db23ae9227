// A picture as SVG text: just what the charts need. It carries its own background, so it reads the same on a light and
// on a dark page; system fonts, no script, nothing fetched.
//
// Coordinates are pixels from the upper left corner. Any text may be drawn: it is escaped here. The same calls give the
// same bytes, whatever the locale.
//
// Fonts are the reader's, so widths are estimates, those of the widest usual one (DejaVu Sans, Verdana): what fits by
// them fits.
#pragma once

#include <string>
#include <string_view>

namespace shardplan::report {

constexpr std::string_view kInk = "#1f2328";     // text and axes
constexpr std::string_view kDimInk = "#59636e";  // text beside the point
constexpr std::string_view kGrid = "#dfe3e8";    // lines behind data
constexpr std::string_view kAlarm = "#b83c00";   // text about too much: vermilion, dark enough to read on white
constexpr std::string_view kVermilion = "#d55e00";

struct SvgPoint {
  double x = 0;
  double y = 0;
};

struct SvgSize {
  double width = 0;
  double height = 0;
};

struct SvgStroke {
  std::string_view colour = kInk;
  double width = 1;
  std::string_view dashes{};  // "6 4"; empty: solid
};

enum class SvgAnchor { start, middle, end };

struct SvgText {
  double size = 12;
  bool bold = false;
  std::string_view colour = kInk;
  SvgAnchor anchor = SvgAnchor::start;
  double room = 0;      // wider text is cut, with an ellipsis and its whole as a tooltip; 0: never cut
  bool backed = false;  // on white, for text over lines
  bool upward = false;  // read from bottom to top
};

// Estimated, in pixels.
double text_width(std::string_view text, const SvgText& style);

class Svg {
 public:
  // `title` and `description` are what a screen reader says.
  Svg(SvgSize size, std::string_view title, std::string_view description);

  // `tooltip`: shown by browsers when the file itself is open; may be empty.
  void rectangle(SvgPoint corner, SvgSize size, std::string_view colour, std::string_view tooltip = {});
  // Filled without smoothing, for shapes of horizontal and vertical edges; `data` is in SVG's path syntax.
  void area(std::string_view data, std::string_view colour, std::string_view tooltip);
  void line(SvgPoint from, SvgPoint to, const SvgStroke& stroke);
  void dot(SvgPoint centre, double radius);
  // `at` is on the baseline, at the anchor.
  void text(SvgPoint at, std::string_view text, const SvgText& style = {});

  std::string finish() &&;

 private:
  std::string text_;
};

// "12.5": at most two decimals, as Svg writes it.
std::string svg_number(double value);

}  // namespace shardplan::report
