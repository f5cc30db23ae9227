#include "tests/tools/report/xml.h"

#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <stdexcept>

#include "tools/report/unicode.h"

namespace shardplan::report {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  XmlElement document() {
    for (const char32_t point : code_points(text_)) {
      if (point < U' ' && point != U'\n') fail("a control character");
    }
    if (utf8(code_points(text_)) != text_) fail("not UTF-8");
    XmlElement root = element();
    skip_space();
    if (at_ != text_.size()) fail("something after the root element");
    return root;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw std::runtime_error(fmt::format("XML, offset {}: {}", at_, what));
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool next_is(std::string_view word) const { return text_.substr(at_, word.size()) == word; }
  void expect(std::string_view word) {
    if (!next_is(word)) fail(fmt::format("expected {}", word));
    at_ += word.size();
  }
  void skip_space() {
    while (peek() == ' ' || peek() == '\n') ++at_;
  }

  std::string name() {
    const std::size_t begin = at_;
    while (std::isalnum(static_cast<unsigned char>(peek())) != 0 || (at_ > begin && (peek() == '-' || peek() == ':'))) {
      ++at_;
    }
    if (at_ == begin || std::isdigit(static_cast<unsigned char>(text_[begin])) != 0) fail("expected a name");
    return std::string(text_.substr(begin, at_ - begin));
  }

  char reference() {
    for (const auto& [entity, character] :
         {std::pair{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}}) {
      if (!next_is(entity)) continue;
      expect(entity);
      return character;
    }
    fail("an unknown entity");
  }

  std::string value() {
    std::string value;
    expect("\"");
    while (peek() != '"') {
      if (at_ == text_.size() || peek() == '<') fail("an attribute without an end");
      value += peek() == '&' ? reference() : text_[at_++];
    }
    expect("\"");
    return value;
  }

  XmlElement element() {
    XmlElement element;
    expect("<");
    element.name = name();
    while (peek() != '>' && peek() != '/') {
      if (peek() != ' ') fail("expected a space before an attribute");
      skip_space();
      const std::string key = name();
      expect("=");
      if (!element.attributes.emplace(key, value()).second) fail("an attribute twice: " + key);
    }
    if (next_is("/>")) {
      expect("/>");
      return element;
    }
    expect(">");
    while (!next_is("</")) {
      if (at_ == text_.size()) fail("no end of element " + element.name);
      if (peek() == '<') {
        element.children.push_back(this->element());
      } else {
        element.text += peek() == '&' ? reference() : text_[at_++];
      }
    }
    expect("</" + element.name + ">");
    return element;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

double XmlElement::number(const std::string& key) const {
  std::size_t used = 0;
  const double value = std::stod(attribute(key), &used);
  if (used != attribute(key).size() || !std::isfinite(value)) throw std::runtime_error("no number: " + attribute(key));
  return value;
}

const XmlElement* XmlElement::child(std::string_view which) const {
  for (const XmlElement& element : children) {
    if (element.name == which) return &element;
  }
  return nullptr;
}

std::string XmlElement::tooltip() const {
  const XmlElement* title = child("title");
  return title == nullptr ? std::string() : title->text;
}

XmlElement parse_xml(std::string_view text) {
  return Parser(text).document();
}

}  // namespace shardplan::report
