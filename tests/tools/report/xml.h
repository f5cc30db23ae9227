// A strict reader of the XML that a picture may consist of: elements, attributes, text and the five predefined
// entities. No declaration, comment, document type or processing instruction.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace shardplan::report {

struct XmlElement {
  std::string name;
  std::map<std::string, std::string> attributes;
  std::string text;  // directly inside it
  std::vector<XmlElement> children;

  const std::string& attribute(const std::string& key) const { return attributes.at(key); }
  double number(const std::string& key) const;  // the whole value is one finite number
  const XmlElement* child(std::string_view name) const;
  std::string tooltip() const;  // the text of its <title>
};

// Throws std::runtime_error, with the offset, on anything not well formed.
XmlElement parse_xml(std::string_view text);

}  // namespace shardplan::report
