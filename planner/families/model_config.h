// A config.json as a family's function reads it: typed attributes with the defaults of the family's class.
//
// A file leaves out what equals the default, so every attribute has one. Attributes are asked for by the name that
// transformers gives them (hidden_size); the family's aliases (n_embd) are read as well.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/families/family.h"
#include "planner/formats/json.h"

namespace shardplan {

class ModelConfig {
 public:
  // Sizes are at most this, so that the product of two fits into 64 bits.
  static constexpr std::uint64_t kLargestSize = (std::uint64_t{1} << 31) - 1;

  // `root` is the object with the attributes. Throws ConfigError.
  ModelConfig(JsonView root, const Family& family);

  // All throw ConfigError, naming file and key, for a value of another type or outside 1..kLargestSize.
  std::uint64_t size(std::string_view attribute, std::uint64_t class_default);
  // Nothing for a missing key and for null.
  std::optional<std::uint64_t> optional_size(std::string_view attribute) const;
  bool flag(std::string_view attribute, bool class_default) const;
  std::string text(std::string_view attribute, std::string_view class_default) const;

  // Throws ConfigError with the key under which the file has the attribute.
  [[noreturn]] void fail(std::string_view attribute, const std::string& problem) const;

  const std::string& source() const { return root_.source(); }
  const Family& family() const { return family_; }
  // From `architectures`: the head, and where the base model lies.
  const Head& head() const { return *head_; }
  const std::string& base_prefix() const { return base_prefix_; }
  // num_labels, or the number of entries of id2label; 2 if neither is there.
  std::uint64_t labels() const;
  bool ties_embeddings(bool class_default);

  // What the user should know: assumptions and defaults.
  std::vector<std::string> notes() const;

 private:
  JsonView find(std::string_view attribute) const;
  void choose_head();

  JsonView root_;
  const Family& family_;
  const Head* head_ = nullptr;
  std::string base_prefix_;
  std::vector<std::string> notes_;
  std::vector<std::string> defaults_;  // "hidden_size 4096"
};

}  // namespace shardplan
