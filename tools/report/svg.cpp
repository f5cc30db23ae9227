#include "tools/report/svg.h"

#include <fmt/format.h>

#include "tools/report/unicode.h"

namespace shardplan::report {
namespace {

constexpr char32_t kReplacement = U'\uFFFD';

// XML 1.0 knows no control characters, not even escaped, and two non-characters that it refuses.
bool allowed_in_xml(char32_t point) {
  return point >= U' ' && point != U'\u007F' && point != U'\uFFFE' && point != U'\uFFFF';
}

std::string escaped(std::string_view text) {
  std::u32string points;
  for (const char32_t point : code_points(text)) {
    switch (point) {
      case U'&':
        points += U"&amp;";
        break;
      case U'<':
        points += U"&lt;";
        break;
      case U'>':
        points += U"&gt;";
        break;
      case U'"':
        points += U"&quot;";
        break;
      default:
        points += allowed_in_xml(point) ? point : kReplacement;
    }
  }
  return utf8(points);
}

// In units of the font's size.
double advance(char32_t point) {
  constexpr char32_t kFirstWide = U'\u1100';  // from here on scripts whose letters are as wide as high
  constexpr std::u32string_view kNarrow = U" .,:;'|!()[]ijlIft-/";
  constexpr std::u32string_view kBroad = U"mwMWGOQ%@+=<>\u2026";
  if (kBroad.find(point) != std::u32string_view::npos) return 1.0;
  if (point >= kFirstWide) return 1.05;
  if (kNarrow.find(point) != std::u32string_view::npos) return 0.4;
  return point < U'a' && point > U'9' ? 0.72 : 0.64;
}

double width_of(std::u32string_view points, const SvgText& style) {
  double width = 0;
  for (const char32_t point : points) width += advance(point);
  return width * style.size * (style.bold ? 1.1 : 1.0);
}

std::u32string fitted(std::u32string points, const SvgText& style) {
  if (style.room <= 0 || width_of(points, style) <= style.room) return points;
  points += U'\u2026';
  while (points.size() > 1 && width_of(points, style) > style.room) points.erase(points.size() - 2, 1);
  return points;
}

std::string title_element(std::string_view tooltip) {
  return tooltip.empty() ? std::string() : fmt::format("<title>{}</title>", escaped(tooltip));
}

std::string_view anchor_attribute(SvgAnchor anchor) {
  switch (anchor) {
    case SvgAnchor::middle:
      return R"( text-anchor="middle")";
    case SvgAnchor::end:
      return R"( text-anchor="end")";
    case SvgAnchor::start:
      break;
  }
  return "";
}

}  // namespace

std::string svg_number(double value) {
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

double text_width(std::string_view text, const SvgText& style) {
  return width_of(code_points(text), style);
}

Svg::Svg(SvgSize size, std::string_view title, std::string_view description) {
  const std::string width = svg_number(size.width);
  const std::string height = svg_number(size.height);
  text_ = fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{0}" height="{1}" viewBox="0 0 {0} {1}")"
      R"( font-family="system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif">)"
      "\n<title>{2}</title>\n<desc>{3}</desc>\n"
      R"(<rect x="0.5" y="0.5" width="{4}" height="{5}" rx="6" fill="#ffffff" stroke="#d1d9e0"/>)"
      "\n",
      width, height, escaped(title), escaped(description), svg_number(size.width - 1), svg_number(size.height - 1));
}

void Svg::rectangle(SvgPoint corner, SvgSize size, std::string_view colour, std::string_view tooltip) {
  text_ += fmt::format(R"(<rect x="{}" y="{}" width="{}" height="{}" fill="{}">{}</rect>)"
                       "\n",
                       svg_number(corner.x), svg_number(corner.y), svg_number(size.width), svg_number(size.height),
                       colour, title_element(tooltip));
}

void Svg::area(std::string_view data, std::string_view colour, std::string_view tooltip) {
  text_ += fmt::format(R"(<path d="{}" fill="{}" shape-rendering="crispEdges">{}</path>)"
                       "\n",
                       data, colour, title_element(tooltip));
}

void Svg::line(SvgPoint from, SvgPoint to, const SvgStroke& stroke) {
  text_ += fmt::format(R"(<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-width="{}")", svg_number(from.x),
                       svg_number(from.y), svg_number(to.x), svg_number(to.y), stroke.colour, svg_number(stroke.width));
  if (!stroke.dashes.empty()) text_ += fmt::format(R"( stroke-dasharray="{}")", stroke.dashes);
  text_ += "/>\n";
}

void Svg::dot(SvgPoint centre, double radius) {
  text_ += fmt::format(R"(<circle cx="{}" cy="{}" r="{}" fill="{}" stroke="#ffffff" stroke-width="1.5"/>)"
                       "\n",
                       svg_number(centre.x), svg_number(centre.y), svg_number(radius), kInk);
}

void Svg::text(SvgPoint at, std::string_view text, const SvgText& style) {
  const std::u32string whole = code_points(text);
  const std::u32string shown = fitted(whole, style);
  if (style.backed) {
    const double width = width_of(shown, style);
    const double before = style.anchor == SvgAnchor::start ? 0 : style.anchor == SvgAnchor::end ? width : width / 2;
    rectangle({at.x - before - 2, at.y - style.size}, {width + 4, 1.3 * style.size}, "#ffffff");
  }
  text_ += fmt::format(R"(<text x="{}" y="{}" font-size="{}" fill="{}"{}{})", svg_number(at.x), svg_number(at.y),
                       svg_number(style.size), style.colour, style.bold ? R"( font-weight="600")" : "",
                       anchor_attribute(style.anchor));
  if (style.upward) {
    text_ += fmt::format(R"xml( transform="rotate(-90 {} {})")xml", svg_number(at.x), svg_number(at.y));
  }
  text_ += fmt::format(">{}{}</text>\n", escaped(utf8(shown)), shown == whole ? std::string() : title_element(text));
}

std::string Svg::finish() && {
  return std::move(text_) + "</svg>\n";
}

}  // namespace shardplan::report
