// A map of Megatron-LM's command-line arguments, as people write it: names with or without leading dashes, with - or _;
// numbers as numbers or as text, as a shell would pass them; a flag is true, or false or null where it is not given.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "planner/formats/json.h"

namespace shardplan {

class MegatronArguments {
 public:
  static constexpr std::uint64_t kLargestSize = (std::uint64_t{1} << 31) - 1;

  // `map` must outlive it. Throws ConfigError where it is no map or names an argument twice.
  explicit MegatronArguments(JsonView map);

  // All of these count as a use, and throw ConfigError with the file and the key for a value of another type. Names are
  // without dashes in front: "num-layers". An argument that is null is not given.
  bool given(std::string_view name);
  bool flag(std::string_view name);
  std::optional<std::uint64_t> positive(std::string_view name, std::uint64_t largest = kLargestSize);
  std::uint64_t positive_or(std::string_view name, std::uint64_t absent, std::uint64_t largest = kLargestSize);
  std::uint64_t required(std::string_view name, std::uint64_t largest = kLargestSize);
  std::optional<std::uint64_t> count(std::string_view name, std::uint64_t largest = kLargestSize);
  double fraction_or(std::string_view name, double absent);  // 0 to 1
  // One of the words.
  std::string word_or(std::string_view name, std::string_view absent, std::initializer_list<std::string_view> words);
  // Any text. A number, a truth value or a list is shown as it is written.
  std::optional<std::string> text(std::string_view name);
  // fp32, fp16, bf16 or fp8.
  DType dtype_or(std::string_view name, DType absent, std::initializer_list<std::string_view> words);
  // A Python list expression, such as "([0]*3+[1]*58)", or a list: its 0s and 1s, at most `longest`. Nothing where the
  // value is no list.
  std::optional<std::vector<bool>> pattern(std::string_view name, std::size_t longest);

  // Where the argument is, or would be, for errors and for Said::key.
  std::string key(std::string_view name) const;
  [[noreturn]] void fail(std::string_view name, const std::string& problem) const;
  [[noreturn]] void fail_expected(std::string_view name, const std::string& what) const;

  // What was given and never asked for, in the order of names.
  std::vector<std::string> unused() const;

 private:
  std::optional<JsonView> find(std::string_view name);
  std::optional<std::uint64_t> number(std::string_view name, std::uint64_t least, std::uint64_t largest);

  JsonView map_;
  std::map<std::string, JsonView, std::less<>> values_;
  std::set<std::string, std::less<>> used_;
};

}  // namespace shardplan
