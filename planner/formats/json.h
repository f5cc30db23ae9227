// Reading JSON that other people wrote.
//
// A JsonDocument is a parsed text; a JsonView is a value in it that knows where it is, so that whatever is wrong with
// it is one ConfigError: "config.json: rope_scaling.factor: expected a positive integer, found \"abc\"".
//
// What is read: RFC 8259, and the bare Infinity, -Infinity and NaN that Python writes; a UTF-8 byte order mark is
// skipped. What is refused: a key twice in one object, more than 64 levels, bytes that are no UTF-8, text of 2 GiB or
// more. Syntax errors say line and column (in bytes, from 1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shardplan {

class JsonChildren;
class JsonView;

class JsonDocument {
 public:
  // `source` names the text in errors. Throws ConfigError. The text is not needed afterwards.
  JsonDocument(std::string_view text, std::string source);
  JsonDocument(const JsonDocument&) = delete;
  JsonDocument& operator=(const JsonDocument&) = delete;

  JsonView root() const;
  const std::string& source() const { return source_; }

 private:
  friend class JsonBuilder;
  friend class JsonChildren;
  friend class JsonView;

  // `whole`: a number written with a point or an exponent that is an integer all the same.
  enum class Kind : std::uint8_t { null, boolean, integer, whole, real, string, array, object };
  struct Text {
    std::uint32_t offset = 0;
    std::uint32_t size = 0;
  };
  struct Node {
    Kind kind = Kind::null;
    bool negative = false;
    std::uint32_t parent = 0;
    std::uint32_t next = 0;   // sibling; 0 = none
    std::uint32_t first = 0;  // child; 0 = none
    std::uint32_t children = 0;
    Text key;
    Text string;
    std::uint64_t magnitude = 0;  // of integers; 0 or 1; the bits of a real
  };

  std::string_view text(Text part) const { return std::string_view(strings_).substr(part.offset, part.size); }
  std::string path(std::uint32_t node) const;

  std::string source_;
  std::vector<Node> nodes_;  // in order of appearance: the root is 0, children follow their parents
  std::string strings_;
};

// A value, or the place where one is missing; valid as long as its document. Every reading member throws ConfigError
// where the value is missing or another thing; the ones that say "or" take a missing key as the default, but not null.
class JsonView {
 public:
  bool exists() const { return node_ != kMissing; }
  bool is_null() const;
  bool is_object() const;
  bool is_array() const;
  bool is_string() const;
  bool is_number() const;
  bool is_minus_one() const;

  // "rope_scaling.factor", "shape[1]"; empty for the root.
  std::string path() const;
  const std::string& source() const { return document_->source(); }
  // Of a member of an object.
  std::string_view key() const;
  // For messages: "null", "3", "\"abc\"" (shortened), "an array".
  std::string shown() const;

  // The place of this member as if it were not there.
  JsonView absent() const;
  // A member of an object, which may be missing. `key` must outlive the view.
  JsonView operator[](std::string_view key) const;
  JsonChildren members() const;   // of an object
  JsonChildren elements() const;  // of an array
  std::size_t size() const;       // of an object or array

  bool as_bool() const;
  bool as_bool_or(bool absent) const { return exists() ? as_bool() : absent; }
  std::string_view as_string() const;
  double as_number() const;
  // Integers; 4096.0 and 5e8 are. A larger number than `largest` is an error that names the bound.
  std::uint64_t as_count(std::uint64_t largest = UINT64_MAX) const;     // from 0
  std::uint64_t as_positive(std::uint64_t largest = UINT64_MAX) const;  // from 1
  // Only digits: neither 4096.0 nor 5e8.
  std::uint64_t as_digits() const;

  // Throws ConfigError(source, path, problem).
  [[noreturn]] void fail(const std::string& problem) const;
  // "expected WHAT, found 3"
  [[noreturn]] void fail_expected(const std::string& what) const;

 private:
  friend class JsonChildren;
  friend class JsonDocument;
  static constexpr std::uint32_t kMissing = UINT32_MAX;

  JsonView(const JsonDocument* document, std::uint32_t node) : document_(document), node_(node) {}
  const JsonDocument::Node* node() const { return exists() ? &document_->nodes_[node_] : nullptr; }
  std::uint64_t integer(std::uint64_t smallest, std::uint64_t largest, const char* what) const;

  const JsonDocument* document_;
  std::uint32_t node_;
  std::uint32_t parent_ = 0;    // of a missing member
  std::string_view missing_{};  // its key
};

// The children of an object or array, in order: for (const JsonView member : object.members()) ...
class JsonChildren {
 public:
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = JsonView;
    using difference_type = std::ptrdiff_t;
    using pointer = void;
    using reference = JsonView;

    Iterator(const JsonDocument* document, std::uint32_t node) : document_(document), node_(node) {}
    JsonView operator*() const { return {document_, node_}; }
    Iterator& operator++() {
      node_ = document_->nodes_[node_].next;
      return *this;
    }
    bool operator==(const Iterator& other) const { return node_ == other.node_; }

   private:
    const JsonDocument* document_;
    std::uint32_t node_;
  };

  Iterator begin() const { return {document_, first_}; }
  Iterator end() const { return {document_, 0}; }

 private:
  friend class JsonView;
  JsonChildren(const JsonDocument* document, std::uint32_t first) : document_(document), first_(first) {}

  const JsonDocument* document_;
  std::uint32_t first_;
};

}  // namespace shardplan
