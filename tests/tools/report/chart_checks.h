// What holds for every chart, whatever it shows.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tests/tools/report/xml.h"

namespace shardplan::report {

// Well formed; a title, a description, a background over the whole; no script, style sheet or link; every text inside
// the canvas and over no other text. Adds a failure for each that does not hold.
XmlElement checked_chart(const std::string& svg);

// The elements of that name in the order in which they are drawn.
std::vector<XmlElement> elements(const XmlElement& root, std::string_view name);
// The text element that says exactly this; throws std::runtime_error where there is none, or more than one.
XmlElement text_saying(const XmlElement& root, std::string_view text);
bool says(const XmlElement& root, std::string_view text);
// The shape with this tooltip.
XmlElement shape(const XmlElement& root, std::string_view name, std::string_view tooltip);

}  // namespace shardplan::report
