// Reading Python pickles of plain data: dicts, lists, tuples, texts, numbers, truth values and None.
//
// A pickle is a program for a stack machine, and one that names a class can run anything. This reader knows the opcodes that
// plain data takes (protocols 2 to 5: Python's pickle.dump and torch's C++ Pickler) and refuses every other one by its number
// and offset: GLOBAL, REDUCE, BUILD, persistent ids and extensions among them. It allocates at most in proportion to the text.
//
// A PicklePart is a value that knows where it is, as JsonView does: whatever is wrong is one ConfigError, "snapshot.pickle:
// segments[3].total_size: expected an integer from 0, found \"abc\"".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shardplan {

class PicklePart;

class PickleDocument {
 public:
  // `source` names the bytes in errors. Throws ConfigError. The bytes must outlive the document: texts stay in them.
  PickleDocument(std::string_view bytes, std::string source);
  PickleDocument(const PickleDocument&) = delete;
  PickleDocument& operator=(const PickleDocument&) = delete;

  PicklePart root() const;
  const std::string& source() const { return source_; }

 private:
  friend class PicklePart;
  friend class PickleReader;

  enum class Kind : std::uint8_t { none, boolean, integer, real, text, list, dict };  // a tuple is a list
  struct Node {
    Kind kind = Kind::none;
    std::int64_t integer = 0;
    double real = 0;
    std::string_view text{};
    std::vector<std::uint32_t> children{};  // of a dict: key, value, key, value, ...
    // The first container that it was put into, for errors: a value may be remembered and used again.
    std::uint32_t parent = kNone;
    std::uint32_t place = 0;  // among its children
  };
  static constexpr std::uint32_t kNone = UINT32_MAX;

  std::string source_;
  std::vector<Node> nodes_;
  std::uint32_t root_ = 0;
};

// Valid as long as its document. A missing member of a dict is a part that does not exist; reading one throws.
class PicklePart {
 public:
  bool exists() const { return node_ != PickleDocument::kNone; }
  bool is_none() const;

  PicklePart operator[](std::string_view key) const;  // of a dict; `key` must outlive the part
  std::size_t size() const;                           // of a list
  PicklePart at(std::size_t place) const;             // of a list: less than its size

  std::uint64_t as_count() const;  // an integer from 0
  std::uint64_t as_count_or_zero() const { return exists() ? as_count() : 0; }
  std::string_view as_text() const;

  std::string path() const;
  // Throws ConfigError(source, path, problem).
  [[noreturn]] void fail_expected(const std::string& what) const;

 private:
  friend class PickleDocument;
  using Node = PickleDocument::Node;
  PicklePart(const PickleDocument* document, std::uint32_t node) : document_(document), node_(node) {}
  const Node& node() const { return document_->nodes_[node_]; }
  const Node& of_kind(PickleDocument::Kind kind, const char* what) const;
  std::string shown() const;

  const PickleDocument* document_;
  std::uint32_t node_;
  std::uint32_t parent_ = PickleDocument::kNone;  // of a missing member
  std::string_view key_{};                        // its key
};

}  // namespace shardplan
