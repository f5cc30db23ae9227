#include "tests/tools/report/chart_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <stdexcept>

#include "tools/report/svg.h"

namespace shardplan::report {
namespace {

struct Box {
  double left, top, right, bottom;
  std::string text;
};

Box box_of(const XmlElement& text) {
  const bool bold = text.attributes.contains("font-weight");
  const double size = text.number("font-size");
  const double width = text_width(text.text, {.size = size, .bold = bold});
  const std::string anchor = text.attributes.contains("text-anchor") ? text.attribute("text-anchor") : "start";
  const double before = anchor == "start" ? 0 : anchor == "end" ? width : width / 2;
  const double x = text.number("x");
  const double y = text.number("y");
  const double ascent = 0.75 * size;
  const double descent = 0.2 * size;
  if (text.attributes.contains("transform")) {
    return {x - ascent, y + before - width, x + descent, y + before, text.text};
  }
  return {x - before, y - ascent, x - before + width, y + descent, text.text};
}

bool overlap(const Box& a, const Box& b) {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

void check_texts(const XmlElement& root) {
  std::vector<Box> boxes;
  for (const XmlElement& text : elements(root, "text")) {
    const Box box = box_of(text);
    EXPECT_GE(text.number("font-size"), 11) << box.text;
    EXPECT_TRUE(box.left >= 0 && box.top >= 0 && box.right <= root.number("width") &&
                box.bottom <= root.number("height"))
        << box.text << " leaves the canvas";
    for (const Box& other : boxes) EXPECT_FALSE(overlap(box, other)) << other.text << " is under " << box.text;
    boxes.push_back(box);
  }
}

}  // namespace

XmlElement checked_chart(const std::string& svg) {
  XmlElement root = parse_xml(svg);
  EXPECT_EQ(root.name, "svg");
  EXPECT_EQ(root.attribute("xmlns"), "http://www.w3.org/2000/svg");
  EXPECT_EQ(root.number("width"), 900);
  EXPECT_NE(root.child("title"), nullptr);
  EXPECT_FALSE(root.child("desc")->text.empty());
  const XmlElement& background = *root.child("rect");
  EXPECT_EQ(background.attribute("fill"), "#ffffff");
  EXPECT_GE(background.number("width"), root.number("width") - 1);
  EXPECT_GE(background.number("height"), root.number("height") - 1);
  const std::set<std::string> known{"title", "desc", "rect", "line", "path", "circle", "text"};
  for (const XmlElement& element : root.children) {
    EXPECT_TRUE(known.contains(element.name)) << element.name;
    if (element.name == "rect") {
      EXPECT_GE(element.number("width"), 0);
      EXPECT_GE(element.number("height"), 0);
    }
  }
  check_texts(root);
  return root;
}

std::vector<XmlElement> elements(const XmlElement& root, std::string_view name) {
  std::vector<XmlElement> found;
  for (const XmlElement& element : root.children) {
    if (element.name == name) found.push_back(element);
  }
  return found;
}

bool says(const XmlElement& root, std::string_view text) {
  const std::vector<XmlElement> texts = elements(root, "text");
  return std::any_of(texts.begin(), texts.end(), [&](const XmlElement& element) { return element.text == text; });
}

XmlElement text_saying(const XmlElement& root, std::string_view text) {
  std::vector<XmlElement> found;
  for (const XmlElement& element : elements(root, "text")) {
    if (element.text == text) found.push_back(element);
  }
  if (found.size() != 1) throw std::runtime_error(std::to_string(found.size()) + " texts say " + std::string(text));
  return found.front();
}

XmlElement shape(const XmlElement& root, std::string_view name, std::string_view tooltip) {
  for (const XmlElement& element : elements(root, name)) {
    if (element.tooltip() == tooltip) return element;
  }
  throw std::runtime_error("no shape is " + std::string(tooltip));
}

}  // namespace shardplan::report
