#include "planner/formats/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <boost/json/basic_parser_impl.hpp>
#include <limits>
#include <utility>

#include "base/error.h"
#include "planner/formats/decimal.h"

namespace shardplan {
namespace {

constexpr std::size_t kMaxDepth = 64;

std::string position(std::string_view text, std::size_t offset) {
  const std::string_view before = text.substr(0, offset);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  const std::size_t start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  return fmt::format("line {}, column {}", line, offset - start + 1);
}

// A bare literal of Python's json module, which is no JSON.
struct Literal {
  std::size_t offset = 0;
  std::size_t size = 0;
  double value = 0;
};

// The first one from `offset` on that is not inside a string; at the end of the text if there is none.
Literal next_literal(std::string_view text, std::size_t offset) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  static constexpr struct {
    std::string_view word;
    double value;
  } kLiterals[] = {{"NaN", std::numeric_limits<double>::quiet_NaN()}, {"Infinity", infinity}, {"-Infinity", -infinity}};
  for (bool in_string = false; offset < text.size(); ++offset) {
    const char c = text[offset];
    if (c == '"') {
      in_string = !in_string;
    } else if (in_string) {
      if (c == '\\') ++offset;
    } else if (c == 'N' || c == 'I' || c == '-') {
      for (const auto& [word, value] : kLiterals) {
        if (text.substr(offset).starts_with(word)) return {offset, word.size(), value};
      }
    }
  }
  return {text.size(), 0, 0};
}

bool has_literal(std::string_view text) {
  return text.find("NaN") != std::string_view::npos || text.find("Infinity") != std::string_view::npos;
}

}  // namespace

// Receives the parser's events and makes the nodes of a document.
class JsonBuilder {
 public:
  using Code = boost::system::error_code;
  using Chars = boost::json::string_view;
  // NOLINTBEGIN(readability-identifier-naming): the parser asks for these names
  static constexpr std::size_t max_object_size = SIZE_MAX;
  static constexpr std::size_t max_array_size = SIZE_MAX;
  static constexpr std::size_t max_key_size = SIZE_MAX;
  static constexpr std::size_t max_string_size = SIZE_MAX;
  // NOLINTEND(readability-identifier-naming)

  explicit JsonBuilder(JsonDocument& document) : document_(document) {}

  // The next number stands for this one.
  void substitute(double value) { substitute_ = value; }

  bool on_document_begin(Code&) { return true; }
  bool on_document_end(Code&) { return true; }
  bool on_object_begin(Code&) { return open(Kind::object); }
  bool on_object_end(std::size_t, Code&) {
    refuse_duplicates(open_.back().node);
    open_.pop_back();
    return true;
  }
  bool on_array_begin(Code&) { return open(Kind::array); }
  bool on_array_end(std::size_t, Code&) {
    open_.pop_back();
    return true;
  }
  bool on_key_part(Chars part, std::size_t, Code&) { return collect(part); }
  bool on_key(Chars part, std::size_t, Code&) {
    collect(part);
    key_ = take();
    return true;
  }
  bool on_string_part(Chars part, std::size_t, Code&) { return collect(part); }
  bool on_string(Chars part, std::size_t, Code&) {
    collect(part);
    const JsonDocument::Text text = take();
    add(Kind::string).string = text;
    return true;
  }
  bool on_number_part(Chars part, Code&) {
    number_.append(part.data(), part.size());
    return true;
  }
  bool on_int64(std::int64_t value, Chars, Code&) {
    number_.clear();
    if (substitute_) return add_real(*std::exchange(substitute_, std::nullopt));
    const auto bits = static_cast<std::uint64_t>(value);
    return add_integer(Kind::integer, value < 0 ? ~bits + 1 : bits, value < 0);
  }
  bool on_uint64(std::uint64_t value, Chars, Code&) {
    number_.clear();
    return add_integer(Kind::integer, value, false);
  }
  bool on_double(double value, Chars part, Code&) {
    number_.append(part.data(), part.size());
    const std::string numeral = std::exchange(number_, {});
    const bool negative = numeral.starts_with('-');
    const auto integer = exact_integer(std::string_view(numeral).substr(negative ? 1 : 0));
    return integer ? add_integer(Kind::whole, *integer, negative && *integer > 0) : add_real(value);
  }
  bool on_bool(bool value, Code&) { return add_integer(Kind::boolean, value ? 1 : 0, false); }
  bool on_null(Code&) {
    add(Kind::null);
    return true;
  }
  bool on_comment_part(Chars, Code&) { return true; }
  bool on_comment(Chars, Code&) { return true; }

 private:
  using Kind = JsonDocument::Kind;
  using Node = JsonDocument::Node;

  struct Open {
    std::uint32_t node = 0;
    std::uint32_t last_child = 0;
  };

  bool collect(Chars part) {
    document_.strings_.append(part.data(), part.size());
    return true;
  }
  // What was collected since the last call.
  JsonDocument::Text take() {
    const auto end = static_cast<std::uint32_t>(document_.strings_.size());
    const std::uint32_t begin = std::exchange(taken_, end);
    return {begin, end - begin};
  }
  Node& add(Kind kind) {
    auto& nodes = document_.nodes_;
    const auto index = static_cast<std::uint32_t>(nodes.size());
    Node& node = nodes.emplace_back();
    node.kind = kind;
    node.key = std::exchange(key_, {});
    if (!open_.empty()) {
      Open& parent = open_.back();
      node.parent = parent.node;
      (parent.last_child == 0 ? nodes[parent.node].first : nodes[parent.last_child].next) = index;
      parent.last_child = index;
      ++nodes[parent.node].children;
    }
    return node;
  }
  bool add_integer(Kind kind, std::uint64_t magnitude, bool negative) {
    Node& node = add(kind);
    node.magnitude = magnitude;
    node.negative = negative;
    return true;
  }
  bool add_real(double value) {
    add(Kind::real).magnitude = std::bit_cast<std::uint64_t>(value);
    return true;
  }
  bool open(Kind kind) {
    add(kind);
    open_.push_back({static_cast<std::uint32_t>(document_.nodes_.size() - 1), 0});
    return true;
  }
  void refuse_duplicates(std::uint32_t object) const {
    const auto& nodes = document_.nodes_;
    std::vector<std::uint32_t> members;
    members.reserve(nodes[object].children);
    for (std::uint32_t i = nodes[object].first; i != 0; i = nodes[i].next) members.push_back(i);
    const auto key = [&](std::uint32_t i) { return document_.text(nodes[i].key); };
    std::sort(members.begin(), members.end(), [&](auto a, auto b) { return key(a) < key(b); });
    const auto twice =
        std::adjacent_find(members.begin(), members.end(), [&](auto a, auto b) { return key(a) == key(b); });
    if (twice != members.end()) {
      throw ConfigError(document_.source_, document_.path(*twice), "appears twice in one object");
    }
  }

  JsonDocument& document_;
  std::vector<Open> open_;
  JsonDocument::Text key_;
  std::uint32_t taken_ = 0;
  std::string number_;
  std::optional<double> substitute_;
};

// Infinity and its kin are handed to the parser as " 0 ", announced to the builder: so they are values wherever a
// number is one, and whatever stands beside them is judged by the parser.
JsonDocument::JsonDocument(std::string_view text, std::string source) : source_(std::move(source)) {
  if (text.size() >= std::size_t{1} << 31) throw ConfigError(source_, "", "is 2 GiB of JSON or more");
  boost::json::parse_options options;
  options.max_depth = kMaxDepth;
  boost::json::basic_parser<JsonBuilder> parser(options, *this);
  const auto feed = [&](std::string_view piece, std::size_t offset, bool more) {
    boost::system::error_code error;
    const std::size_t consumed = parser.write_some(more, piece.data(), piece.size(), error);
    const auto fail = [&](const std::string& problem) {
      throw ConfigError(source_, "", position(text, offset + consumed) + ": " + problem);
    };
    if (error == boost::json::error::incomplete) fail("the text ends too early");
    if (error == boost::json::error::too_deep) fail(fmt::format("nested deeper than {} levels", kMaxDepth));
    if (error) fail(error.message());
    if (consumed < piece.size()) fail("more text after the end of the document");
  };

  std::size_t offset = text.starts_with("\xEF\xBB\xBF") ? 3 : 0;
  if (has_literal(text)) {
    for (Literal literal = next_literal(text, offset); literal.size > 0; literal = next_literal(text, offset)) {
      feed(text.substr(offset, literal.offset - offset), offset, true);
      parser.handler().substitute(literal.value);
      feed(" 0 ", literal.offset, true);
      offset = literal.offset + literal.size;
    }
  }
  feed(text.substr(offset), offset, false);
}

JsonView JsonDocument::root() const {
  return {this, 0};
}

std::string JsonDocument::path(std::uint32_t node) const {
  if (node == 0) return {};
  const Node& parent = nodes_[nodes_[node].parent];
  const std::string above = path(nodes_[node].parent);
  if (parent.kind == Kind::array) {
    std::size_t index = 0;
    for (std::uint32_t i = parent.first; i != node; i = nodes_[i].next) ++index;
    return fmt::format("{}[{}]", above, index);
  }
  const std::string_view key = text(nodes_[node].key);
  return above.empty() ? std::string(key) : fmt::format("{}.{}", above, key);
}

bool JsonView::is_null() const {
  return exists() && node()->kind == JsonDocument::Kind::null;
}
bool JsonView::is_object() const {
  return exists() && node()->kind == JsonDocument::Kind::object;
}
bool JsonView::is_array() const {
  return exists() && node()->kind == JsonDocument::Kind::array;
}
bool JsonView::is_string() const {
  return exists() && node()->kind == JsonDocument::Kind::string;
}
bool JsonView::is_number() const {
  using Kind = JsonDocument::Kind;
  const Kind kind = exists() ? node()->kind : Kind::null;
  return kind == Kind::integer || kind == Kind::whole || kind == Kind::real;
}

bool JsonView::is_minus_one() const {
  using Kind = JsonDocument::Kind;
  const JsonDocument::Node* number = node();
  return number != nullptr && (number->kind == Kind::integer || number->kind == Kind::whole) && number->negative &&
         number->magnitude == 1;
}

std::string JsonView::path() const {
  if (exists()) return document_->path(node_);
  const std::string above = document_->path(parent_);
  return above.empty() ? std::string(missing_) : fmt::format("{}.{}", above, missing_);
}

std::string_view JsonView::key() const {
  return exists() ? document_->text(node()->key) : missing_;
}

JsonView JsonView::absent() const {
  JsonView missing(document_, kMissing);
  missing.parent_ = node()->parent;
  missing.missing_ = key();
  return missing;
}

JsonView JsonView::operator[](std::string_view key) const {
  for (const JsonView member : members()) {
    if (member.key() == key) return member;
  }
  JsonView missing(document_, kMissing);
  missing.parent_ = node_;
  missing.missing_ = key;
  return missing;
}

JsonChildren JsonView::members() const {
  if (!is_object()) fail_expected("an object");
  return {document_, node()->first};
}

JsonChildren JsonView::elements() const {
  if (!exists() || node()->kind != JsonDocument::Kind::array) fail_expected("an array");
  return {document_, node()->first};
}

std::size_t JsonView::size() const {
  return exists() ? node()->children : 0;
}

bool JsonView::as_bool() const {
  if (!exists() || node()->kind != JsonDocument::Kind::boolean) fail_expected("true or false");
  return node()->magnitude != 0;
}

std::string_view JsonView::as_string() const {
  if (!is_string()) fail_expected("a string");
  return document_->text(node()->string);
}

double JsonView::as_number() const {
  using Kind = JsonDocument::Kind;
  const Kind kind = exists() ? node()->kind : Kind::null;
  if (kind == Kind::real) return std::bit_cast<double>(node()->magnitude);
  if (kind != Kind::integer && kind != Kind::whole) fail_expected("a number");
  const auto magnitude = static_cast<double>(node()->magnitude);
  return node()->negative ? -magnitude : magnitude;
}

std::uint64_t JsonView::integer(std::uint64_t smallest, std::uint64_t largest, const char* what) const {
  using Kind = JsonDocument::Kind;
  const JsonDocument::Node* number = node();
  const bool is_integer = number != nullptr && (number->kind == Kind::integer || number->kind == Kind::whole);
  if (is_integer && !number->negative && number->magnitude >= smallest && number->magnitude <= largest) {
    return number->magnitude;
  }
  // The bound is worth a word only where the number is beyond it.
  const bool too_large =
      number != nullptr && (is_integer || number->kind == Kind::real) && as_number() >= static_cast<double>(largest);
  fail_expected(too_large ? fmt::format("{} up to {}", what, largest) : what);
}

std::uint64_t JsonView::as_count(std::uint64_t largest) const {
  return integer(0, largest, "a non-negative integer");
}

std::uint64_t JsonView::as_positive(std::uint64_t largest) const {
  return integer(1, largest, "a positive integer");
}

std::uint64_t JsonView::as_digits() const {
  if (exists() && node()->kind == JsonDocument::Kind::whole) fail_expected("an integer written in digits alone");
  return as_count();
}

void JsonView::fail(const std::string& problem) const {
  throw ConfigError(source(), path(), problem);
}

void JsonView::fail_expected(const std::string& what) const {
  fail(exists() ? fmt::format("expected {}, found {}", what, shown())
                : fmt::format("expected {}, but the key is missing", what));
}

std::string JsonView::shown() const {
  using Kind = JsonDocument::Kind;
  constexpr std::size_t longest = 40;
  switch (node()->kind) {
    case Kind::null:
      return "null";
    case Kind::boolean:
      return node()->magnitude != 0 ? "true" : "false";
    case Kind::integer:
    case Kind::whole:
      return fmt::format("{}{}", node()->negative ? "-" : "", node()->magnitude);
    case Kind::real:
      return fmt::format("{}", as_number());
    case Kind::array:
      return "an array";
    case Kind::object:
      return "an object";
    case Kind::string:
      break;
  }
  std::string_view text = as_string();
  if (text.size() <= longest) return fmt::format("\"{}\"", text);
  text = text.substr(0, longest);
  while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) text.remove_suffix(1);
  return fmt::format("\"{}...\"", text.substr(0, text.empty() ? 0 : text.size() - 1));
}

}  // namespace shardplan
