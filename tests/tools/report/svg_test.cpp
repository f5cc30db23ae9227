#include "tools/report/svg.h"

#include <gtest/gtest.h>

#include "tests/tools/report/xml.h"
#include "tools/report/unicode.h"

namespace shardplan::report {
namespace {

TEST(Unicode, KeepsValidTextAndReplacesTheRest) {
  const std::string valid = "a µ \u20ac \U0001F600";
  EXPECT_EQ(utf8(code_points(valid)), valid);
  EXPECT_EQ(utf8(code_points("a\xff")), "a\uFFFD");
  EXPECT_EQ(utf8(code_points("\xe2\x82")), "\uFFFD\uFFFD");              // cut short
  EXPECT_EQ(utf8(code_points("\xc0\xaf")), "\uFFFD\uFFFD");              // longer than need be
  EXPECT_EQ(utf8(code_points("\xed\xa0\x80z")), "\uFFFD\uFFFD\uFFFDz");  // a surrogate
}

TEST(Svg, EscapesWhateverItIsGiven) {
  const std::string hostile = "<script>\"a\" & 'b'</script>]]>";
  Svg svg({100, 50}, hostile, hostile);
  svg.text({10, 20}, hostile);
  svg.rectangle({1, 2}, {3, 4}, kInk, hostile);
  svg.text({10, 40}, std::string("nul\0 bell\a bad\xff", 15));
  const XmlElement root = parse_xml(std::move(svg).finish());
  EXPECT_EQ(root.child("title")->text, hostile);
  EXPECT_EQ(root.child("desc")->text, hostile);
  EXPECT_EQ(root.child("text")->text, hostile);
  EXPECT_EQ(root.children[4].tooltip(), hostile);
  EXPECT_EQ(root.children[5].text, "nul\uFFFD bell\uFFFD bad\uFFFD");
}

TEST(Svg, NumbersHaveAtMostTwoDecimals) {
  EXPECT_EQ(svg_number(0), "0");
  EXPECT_EQ(svg_number(-0.001), "0");
  EXPECT_EQ(svg_number(100), "100");
  EXPECT_EQ(svg_number(12.5), "12.5");
  EXPECT_EQ(svg_number(-2.999), "-3");
  EXPECT_EQ(svg_number(0.126), "0.13");
}

TEST(Svg, TextIsCutToItsRoomAndKeptAsATooltip) {
  const std::string name = "model.language_model.encoder.layers.31";
  Svg svg({400, 50}, "", "");
  svg.text({0, 20}, name, {.room = 120});
  svg.text({0, 40}, name, {.room = 1000});
  svg.text({0, 40}, name, {.room = 1});
  const XmlElement root = parse_xml(std::move(svg).finish());
  const XmlElement& cut = root.children[3];
  EXPECT_LE(text_width(cut.text, {}), 120);
  EXPECT_GT(text_width(cut.text, {}), 100);
  EXPECT_EQ(cut.text, name.substr(0, cut.text.size() - 3) + "\u2026");
  EXPECT_EQ(cut.tooltip(), name);
  EXPECT_EQ(root.children[4].text, name);
  EXPECT_EQ(root.children[4].tooltip(), "");
  EXPECT_EQ(root.children[5].text, "\u2026");
}

TEST(Svg, BackedTextHasAWhiteRectangleBehindIt) {
  Svg svg({400, 50}, "", "");
  svg.text({100, 20}, "12.3", {.anchor = SvgAnchor::end, .backed = true});
  const XmlElement root = parse_xml(std::move(svg).finish());
  const XmlElement& back = root.children[3];
  EXPECT_EQ(back.attribute("fill"), "#ffffff");
  EXPECT_DOUBLE_EQ(back.number("x") + back.number("width"), 102);
  EXPECT_EQ(root.children[4].text, "12.3");
}

}  // namespace
}  // namespace shardplan::report
