#include "planner/formats/pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <unordered_map>
#include <utility>

#include "base/error.h"

namespace shardplan {

// The stack machine. Names of opcodes are those of Python's pickletools.
class PickleReader {
 public:
  PickleReader(std::string_view bytes, PickleDocument& document) : bytes_(bytes), document_(document) {}

  void run() {
    if (bytes_.empty() || next() != kProto) fail("expected a pickle of protocol 2 or later");
    const std::uint64_t protocol = number(1);
    if (protocol < 2 || protocol > 5) fail(fmt::format("expected protocol 2 to 5, found {}", protocol));
    while (step(next())) {
    }
  }

 private:
  using Kind = PickleDocument::Kind;
  using Node = PickleDocument::Node;
  static constexpr std::uint8_t kProto = 0x80;
  static constexpr std::uint8_t kStop = '.';

  // False after STOP.
  bool step(std::uint8_t opcode) {
    if (opcode == kStop) {
      document_.root_ = pop();
      if (!stack_.empty() || !marks_.empty()) fail("more than one value at the end");
      return false;
    }
    if (!scalar(opcode) && !container(opcode) && !memo(opcode)) {
      fail(fmt::format("opcode 0x{:02x} is not of plain data: classes and calls are not read", opcode));
    }
    return true;
  }

  bool scalar(std::uint8_t opcode) {
    switch (opcode) {
      case 'N':  // NONE
        push({});
        return true;
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push({.kind = Kind::boolean, .integer = opcode == 0x88});
        return true;
      case 'J':  // BININT
        push_integer(static_cast<std::int32_t>(number(4)));
        return true;
      case 'K':  // BININT1
        push_integer(static_cast<std::int64_t>(number(1)));
        return true;
      case 'M':  // BININT2
        push_integer(static_cast<std::int64_t>(number(2)));
        return true;
      case 0x8a:  // LONG1
        push_long(number(1));
        return true;
      case 'G':  // BINFLOAT
        push({.kind = Kind::real, .real = big_endian_double()});
        return true;
      case 'X':  // BINUNICODE
        push({.kind = Kind::text, .text = take(number(4))});
        return true;
      case 0x8c:  // SHORT_BINUNICODE
        push({.kind = Kind::text, .text = take(number(1))});
        return true;
      default:
        return false;
    }
  }

  bool container(std::uint8_t opcode) {
    switch (opcode) {
      case '(':  // MARK
        marks_.push_back(stack_.size());
        return true;
      case '}':  // EMPTY_DICT
        push({.kind = Kind::dict});
        return true;
      case ']':  // EMPTY_LIST
      case ')':  // EMPTY_TUPLE
        push({.kind = Kind::list});
        return true;
      case 'a':  // APPEND
        append(stack_.size() - (stack_.empty() ? 0 : 1), Kind::list);
        return true;
      case 'e':  // APPENDS
        append(pop_mark(), Kind::list);
        return true;
      case 's':  // SETITEM
        append(stack_.size() - std::min<std::size_t>(stack_.size(), 2), Kind::dict);
        return true;
      case 'u':  // SETITEMS
        append(pop_mark(), Kind::dict);
        return true;
      case 't':  // TUPLE
        tuple(pop_mark());
        return true;
      case 0x85:  // TUPLE1
      case 0x86:  // TUPLE2
      case 0x87:  // TUPLE3
        tuple(from_top(opcode - 0x84U));
        return true;
      default:
        return false;
    }
  }

  bool memo(std::uint8_t opcode) {
    switch (opcode) {
      case 0x95:  // FRAME: how many bytes follow, for readers of streams
        number(8);
        return true;
      case 0x94:  // MEMOIZE
        memo_[memo_.size()] = top();
        return true;
      case 'q':  // BINPUT
        memo_[number(1)] = top();
        return true;
      case 'r':  // LONG_BINPUT
        memo_[number(4)] = top();
        return true;
      case 'h':  // BINGET
        push_remembered(number(1));
        return true;
      case 'j':  // LONG_BINGET
        push_remembered(number(4));
        return true;
      default:
        return false;
    }
  }

  std::uint8_t next() { return static_cast<std::uint8_t>(take(1)[0]); }

  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_) fail("the file ends too early");
    const std::string_view part = bytes_.substr(at_, count);
    at_ += count;
    return part;
  }

  // Little endian, as everything is but BINFLOAT.
  std::uint64_t number(std::size_t size) {
    const std::string_view part = take(size);
    std::uint64_t value = 0;
    for (std::size_t i = size; i-- > 0;) value = value << 8 | static_cast<std::uint8_t>(part[i]);
    return value;
  }

  double big_endian_double() {
    std::uint64_t value = 0;
    for (const char byte : take(8)) value = value << 8 | static_cast<std::uint8_t>(byte);
    return std::bit_cast<double>(value);
  }

  void push_integer(std::int64_t value) { push({.kind = Kind::integer, .integer = value}); }

  // Two's complement of any size; of up to 8 bytes here.
  void push_long(std::uint64_t size) {
    if (size > 8) fail(fmt::format("an integer of {} bytes", size));
    if (size == 0) return push_integer(0);
    const std::uint64_t value = number(size) << (64 - 8 * size);
    push_integer(static_cast<std::int64_t>(value) >> (64 - 8 * size));
  }

  void push(Node node) {
    if (document_.nodes_.size() >= UINT32_MAX) fail("too many values");
    stack_.push_back(static_cast<std::uint32_t>(document_.nodes_.size()));
    document_.nodes_.push_back(std::move(node));
  }

  void push_remembered(std::uint64_t key) {
    const auto found = memo_.find(key);
    if (found == memo_.end()) fail(fmt::format("nothing is remembered as {}", key));
    stack_.push_back(found->second);
  }

  std::uint32_t top() {
    if (stack_.empty()) fail("the stack is empty");
    return stack_.back();
  }
  std::uint32_t pop() {
    const std::uint32_t node = top();
    stack_.pop_back();
    return node;
  }
  std::size_t pop_mark() {
    if (marks_.empty() || marks_.back() > stack_.size()) fail("no mark");
    const std::size_t mark = marks_.back();
    marks_.pop_back();
    return mark;
  }
  std::size_t from_top(std::size_t count) {
    if (stack_.size() < count) fail("the stack is empty");
    return stack_.size() - count;
  }

  // What is on the stack from `first` on becomes part of the container below.
  void append(std::size_t first, Kind kind) {
    if (first == 0) fail("nothing to add to");
    const std::uint32_t into = stack_[first - 1];
    if (document_.nodes_[into].kind != kind) fail("an item for what is no list or dict");
    if (kind == Kind::dict && (stack_.size() - first) % 2 != 0) fail("a key without a value");
    move_children(first, into);
  }

  void move_children(std::size_t first, std::uint32_t into) {
    std::vector<std::uint32_t>& children = document_.nodes_[into].children;
    for (std::size_t i = first; i < stack_.size(); ++i) {
      Node& child = document_.nodes_[stack_[i]];
      if (child.parent == PickleDocument::kNone) {
        child.parent = into;
        child.place = static_cast<std::uint32_t>(children.size());
      }
      children.push_back(stack_[i]);
    }
    stack_.resize(first);
  }

  void tuple(std::size_t first) {
    push({.kind = Kind::list});
    const std::uint32_t into = pop();
    move_children(first, into);
    stack_.push_back(into);
  }

  [[noreturn]] void fail(const std::string& problem) const {
    throw ConfigError(document_.source_, "", fmt::format("byte {} of the pickle: {}", at_, problem));
  }

  std::string_view bytes_;
  std::size_t at_ = 0;
  PickleDocument& document_;
  std::vector<std::uint32_t> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint64_t, std::uint32_t> memo_;
};

PickleDocument::PickleDocument(std::string_view bytes, std::string source) : source_(std::move(source)) {
  PickleReader(bytes, *this).run();
}

PicklePart PickleDocument::root() const {
  return {this, root_};
}

bool PicklePart::is_none() const {
  return exists() && node().kind == PickleDocument::Kind::none;
}

const PickleDocument::Node& PicklePart::of_kind(PickleDocument::Kind kind, const char* what) const {
  if (!exists() || node().kind != kind) fail_expected(what);
  return node();
}

PicklePart PicklePart::operator[](std::string_view key) const {
  const Node& dict = of_kind(PickleDocument::Kind::dict, "a dict");
  PicklePart member{document_, PickleDocument::kNone};
  member.parent_ = node_;
  member.key_ = key;
  // The last one of a key wins, as in Python.
  for (std::size_t i = 0; i + 1 < dict.children.size(); i += 2) {
    const Node& name = document_->nodes_[dict.children[i]];
    if (name.kind == PickleDocument::Kind::text && name.text == key) member.node_ = dict.children[i + 1];
  }
  return member;
}

std::size_t PicklePart::size() const {
  return of_kind(PickleDocument::Kind::list, "a list").children.size();
}

PicklePart PicklePart::at(std::size_t place) const {
  const Node& list = of_kind(PickleDocument::Kind::list, "a list");
  SHARDPLAN_CHECK(place < list.children.size(), "an element that the list has");
  return {document_, list.children[place]};
}

std::uint64_t PicklePart::as_count() const {
  const Node& found = of_kind(PickleDocument::Kind::integer, "an integer from 0");
  if (found.integer < 0) fail_expected("an integer from 0");
  return static_cast<std::uint64_t>(found.integer);
}

std::string_view PicklePart::as_text() const {
  return of_kind(PickleDocument::Kind::text, "a text").text;
}

std::string PicklePart::path() const {
  constexpr int kDeepest = 16;  // a list may hold itself
  std::vector<std::string> steps;
  std::uint32_t at = node_;
  if (!exists()) {
    steps.emplace_back(key_);
    at = parent_;
  }
  for (int depth = 0; depth < kDeepest && at != PickleDocument::kNone; ++depth) {
    const Node& inner = document_->nodes_[at];
    if (inner.parent == PickleDocument::kNone) break;
    const Node& outer = document_->nodes_[inner.parent];
    if (outer.kind == PickleDocument::Kind::dict && inner.place > 0) {
      steps.emplace_back(document_->nodes_[outer.children[inner.place - 1]].text);
    } else {
      steps.push_back(fmt::format("[{}]", inner.place));
    }
    at = inner.parent;
  }
  std::string path;
  for (std::size_t i = steps.size(); i-- > 0;) {
    path += fmt::format("{}{}", path.empty() || steps[i].starts_with('[') ? "" : ".", steps[i]);
  }
  return path;
}

std::string PicklePart::shown() const {
  if (!exists()) return "nothing";
  switch (node().kind) {
    case PickleDocument::Kind::none:
      return "None";
    case PickleDocument::Kind::boolean:
      return node().integer != 0 ? "True" : "False";
    case PickleDocument::Kind::integer:
      return fmt::format("{}", node().integer);
    case PickleDocument::Kind::real:
      return fmt::format("{}", node().real);
    case PickleDocument::Kind::text:
      return fmt::format("\"{}\"", node().text.substr(0, 40));
    case PickleDocument::Kind::list:
      return "a list";
    case PickleDocument::Kind::dict:
      return "a dict";
  }
  return {};
}

void PicklePart::fail_expected(const std::string& what) const {
  throw ConfigError(document_->source(), path(), fmt::format("expected {}, found {}", what, shown()));
}

}  // namespace shardplan
