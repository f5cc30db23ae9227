#include "planner/formats/megatron_arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "planner/formats/yaml.h"

namespace shardplan {
namespace {

std::string plain_name(std::string_view name) {
  std::string plain(name.substr(std::min(name.find_first_not_of('-'), name.size())));
  std::replace(plain.begin(), plain.end(), '_', '-');
  return plain;
}

// Python's lists of 0 and 1 with + and *: SUM = PRODUCT {"+" PRODUCT}, PRODUCT = PART {"*" NUMBER},
// PART = "[" [DIGIT {"," DIGIT}] "]" | "(" SUM ")".
class ListExpression {
 public:
  ListExpression(std::string_view text, std::size_t longest) : text_(text), longest_(longest) {}

  // Nothing where the text is something else, or the list too long.
  std::optional<std::vector<bool>> value() {
    std::vector<bool> list = sum(0);
    return failed_ || at_ != text_.size() ? std::nullopt : std::optional(std::move(list));
  }

 private:
  static constexpr int kDeepest = 32;

  char next() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (next() != c) return false;
    ++at_;
    next();
    return true;
  }
  std::vector<bool> fail() {
    failed_ = true;
    return {};
  }
  std::vector<bool> sum(int depth) {
    std::vector<bool> list = product(depth);
    while (!failed_ && take('+')) {
      const std::vector<bool> more = product(depth);
      if (list.size() + more.size() > longest_) return fail();
      list.insert(list.end(), more.begin(), more.end());
    }
    return list;
  }
  std::vector<bool> product(int depth) {
    std::vector<bool> list = part(depth);
    while (!failed_ && take('*')) {
      std::size_t times = 0;
      const char* end = text_.data() + text_.size();
      const auto [stop, error] = std::from_chars(text_.data() + at_, end, times);
      if (error != std::errc{} || (!list.empty() && times > longest_ / list.size())) return fail();
      at_ = static_cast<std::size_t>(stop - text_.data());
      next();
      std::vector<bool> all;
      for (std::size_t i = 0; i < (list.empty() ? 0 : times); ++i) all.insert(all.end(), list.begin(), list.end());
      list = std::move(all);
    }
    return list;
  }
  std::vector<bool> part(int depth) {
    if (depth == kDeepest) return fail();
    if (take('(')) {
      std::vector<bool> list = sum(depth + 1);
      return take(')') ? list : fail();
    }
    if (!take('[')) return fail();
    std::vector<bool> list;
    while (!take(']')) {
      if (!list.empty() && !take(',')) return fail();
      const char digit = next();
      if ((digit != '0' && digit != '1') || list.size() == longest_) return fail();
      list.push_back(digit == '1');
      ++at_;
      next();
    }
    return list;
  }

  std::string_view text_;
  std::size_t longest_;
  std::size_t at_ = 0;
  bool failed_ = false;
};

}  // namespace

MegatronArguments::MegatronArguments(JsonView map) : map_(map) {
  if (!map.is_object()) map.fail_expected("a map of arguments");
  for (const JsonView value : map.members()) {
    const auto [other, is_new] = values_.try_emplace(plain_name(value.key()), value);
    if (!is_new) value.fail(fmt::format("is the argument that '{}' is too", other->second.key()));
  }
}

std::optional<JsonView> MegatronArguments::find(std::string_view name) {
  used_.emplace(name);
  const auto found = values_.find(name);
  if (found == values_.end() || found->second.is_null()) return std::nullopt;
  return found->second;
}

std::string MegatronArguments::key(std::string_view name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? map_[name].path() : found->second.path();
}

void MegatronArguments::fail(std::string_view name, const std::string& problem) const {
  throw ConfigError(map_.source(), key(name), problem);
}

void MegatronArguments::fail_expected(std::string_view name, const std::string& what) const {
  const auto found = values_.find(name);
  (found == values_.end() ? map_[name] : found->second).fail_expected(what);
}

bool MegatronArguments::given(std::string_view name) {
  return find(name).has_value();
}

bool MegatronArguments::flag(std::string_view name) {
  const std::optional<JsonView> value = find(name);
  if (!value) return false;
  if (value->is_string()) {
    const std::string_view text = value->as_string();
    if (text == "true" || text == "True" || text.empty()) return true;
    if (text == "false" || text == "False") return false;
  }
  return value->as_bool();
}

std::optional<std::uint64_t> MegatronArguments::number(std::string_view name, std::uint64_t least,
                                                       std::uint64_t largest) {
  const std::optional<JsonView> value = find(name);
  if (!value) return std::nullopt;
  if (!value->is_string()) return least > 0 ? value->as_positive(largest) : value->as_count(largest);
  const std::string_view text = value->as_string();
  std::uint64_t result = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
  if (error != std::errc{} || end != text.data() + text.size() || result < least || result > largest) {
    value->fail_expected(fmt::format("an integer from {} to {}", least, largest));
  }
  return result;
}

std::optional<std::uint64_t> MegatronArguments::positive(std::string_view name, std::uint64_t largest) {
  return number(name, 1, largest);
}

std::uint64_t MegatronArguments::positive_or(std::string_view name, std::uint64_t absent, std::uint64_t largest) {
  return number(name, 1, largest).value_or(absent);
}

std::uint64_t MegatronArguments::required(std::string_view name, std::uint64_t largest) {
  const std::optional<std::uint64_t> value = number(name, 1, largest);
  if (!value) fail(name, "expected a positive integer, but the argument is missing");
  return *value;
}

std::optional<std::uint64_t> MegatronArguments::count(std::string_view name, std::uint64_t largest) {
  return number(name, 0, largest);
}

double MegatronArguments::fraction_or(std::string_view name, double absent) {
  const std::optional<JsonView> value = find(name);
  if (!value) return absent;
  constexpr const char* kWhat = "a number from 0 to 1";
  double result = -1;
  if (value->is_string()) {
    // As the YAML of its text: "0.5", ".5", "1e-1".
    const std::string text(value->as_string());
    const bool number = text.find_first_not_of("0123456789.eE+-") == std::string::npos;
    const JsonDocument document = json_from_yaml(number ? "[" + text + "]" : "[]", map_.source());
    for (const JsonView element : document.root().elements()) {
      if (!element.is_string() && !element.is_null()) result = element.as_number();
    }
  } else {
    result = value->as_number();
  }
  if (!(result >= 0 && result <= 1)) value->fail_expected(kWhat);
  return result;
}

std::string MegatronArguments::word_or(std::string_view name, std::string_view absent,
                                       std::initializer_list<std::string_view> words) {
  const std::optional<JsonView> value = find(name);
  if (!value) return std::string(absent);
  if (!value->is_string() || std::find(words.begin(), words.end(), value->as_string()) == words.end()) {
    value->fail_expected(fmt::format("one of {}", fmt::join(words, ", ")));
  }
  return std::string(value->as_string());
}

std::optional<std::string> MegatronArguments::text(std::string_view name) {
  const std::optional<JsonView> value = find(name);
  if (!value) return std::nullopt;
  return value->is_string() ? std::string(value->as_string()) : value->shown();
}

DType MegatronArguments::dtype_or(std::string_view name, DType absent, std::initializer_list<std::string_view> words) {
  const std::string word = word_or(name, "", words);
  if (word == "fp32") return DType::f32;
  if (word == "fp16") return DType::f16;
  if (word == "bf16") return DType::bf16;
  return word == "fp8" ? DType::f8_e4m3 : absent;
}

std::optional<std::vector<bool>> MegatronArguments::pattern(std::string_view name, std::size_t longest) {
  const std::optional<JsonView> value = find(name);
  if (!value) return std::nullopt;
  const std::string what = fmt::format("a list of at most {} 0s and 1s, such as \"([0]*1+[1]*3)\"", longest);
  if (value->is_string()) {
    const std::string_view text = value->as_string();
    if (text.find('[') == std::string_view::npos) return std::nullopt;
    std::optional<std::vector<bool>> list = ListExpression(text, longest).value();
    if (!list) value->fail_expected(what);
    return list;
  }
  if (!value->is_array()) return std::nullopt;
  if (value->size() > longest) value->fail_expected(what);
  std::vector<bool> list;
  for (const JsonView element : value->elements()) list.push_back(element.as_count(1) == 1);
  return list;
}

std::vector<std::string> MegatronArguments::unused() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : values_) {
    if (!used_.contains(name) && !value.is_null()) names.push_back(name);
  }
  return names;
}

}  // namespace shardplan
