#include "tools/report/unicode.h"

#include <boost/locale/utf.hpp>
#include <iterator>

namespace shardplan::report {

namespace utf = boost::locale::utf;
using Traits = utf::utf_traits<char>;

std::u32string code_points(std::string_view text) {
  std::u32string points;
  points.reserve(text.size());
  for (auto next = text.begin(); next != text.end();) {
    auto after = next;
    const utf::code_point point = Traits::decode(after, text.end());
    const bool valid = point != utf::illegal && point != utf::incomplete;
    points += valid ? static_cast<char32_t>(point) : U'\uFFFD';
    next = valid ? after : std::next(next);
  }
  return points;
}

std::string utf8(std::u32string_view points) {
  std::string text;
  text.reserve(points.size());
  for (const char32_t point : points) Traits::encode(point, std::back_inserter(text));
  return text;
}

}  // namespace shardplan::report
