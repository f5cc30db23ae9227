// A config.json as a family's function reads it: typed attributes with the defaults of the family's class.
//
// A file leaves out what equals the default, so every attribute has one. Attributes are asked for by the name that
// transformers gives them (hidden_size); the family's aliases (n_embd) are read as well. A model made of models has one
// ModelConfig for each: nested() reads the object under a key ("text_config").
#pragma once

#include <cstdint>
#include <memory>
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

  static constexpr std::uint64_t kMostListed = 65'536;

  // `root` is the object with the attributes. Throws ConfigError.
  ModelConfig(JsonView root, const Family& family);

  // All throw ConfigError, naming file and key, for a value of another type or out of bounds.
  // 1..kLargestSize; a null is an error.
  std::uint64_t size(std::string_view attribute, std::uint64_t class_default);
  std::uint64_t required_size(std::string_view attribute) const;
  // 1..kMostListed: of things that a model lists one by one, such as experts.
  std::uint64_t listed(std::string_view attribute, std::uint64_t class_default);
  // Nothing for a missing key and for null.
  std::optional<std::uint64_t> optional_size(std::string_view attribute) const;
  // 0..kLargestSize; null is 0: "none of them".
  std::uint64_t count(std::string_view attribute, std::uint64_t class_default);
  // Where the class says "none" as null or -1: then, and for a missing key, 0.
  std::uint64_t count_or_none(std::string_view attribute) const;
  // A null is false, as it is to the classes.
  bool flag(std::string_view attribute, bool class_default) const;
  // A positive factor: mlp_ratio 4.0.
  double factor(std::string_view attribute, double class_default) const;
  // A number from 0 to 1: a probability.
  double number(std::string_view attribute, double class_default) const;
  // A place in a list, below 0 counted from behind its end.
  std::int64_t index(std::string_view attribute, std::int64_t class_default) const;
  std::string text(std::string_view attribute, std::string_view class_default) const;
  // The key is there, and is text; and is this text.
  bool is_text(std::string_view attribute) const { return find(attribute).is_string(); }
  bool says(std::string_view attribute, std::string_view text) const {
    return is_text(attribute) && find(attribute).as_string() == text;
  }
  // Arrays; nothing for a missing key and for null.
  std::optional<std::vector<std::uint64_t>> counts(std::string_view attribute) const;
  std::optional<std::vector<std::string>> texts(std::string_view attribute) const;
  // The names of an object's members; none for a missing key and for null.
  std::vector<std::string_view> names(std::string_view attribute) const;
  // The key is there; and is not null.
  bool present(std::string_view attribute) const { return find(attribute).exists(); }
  bool has(std::string_view attribute) const;

  // Throws ConfigError with the key under which the file has the attribute.
  [[noreturn]] void fail(std::string_view attribute, const std::string& problem) const;
  // For messages: "found 3", or what the attribute's absence means.
  std::string found(std::string_view attribute, std::uint64_t value) const;
  // Throws unless `value`, which is the attribute's, divides `whole`, which is that of `whole_name`.
  void require_divisor(std::string_view attribute, std::uint64_t value, std::string_view whole_name,
                       std::uint64_t whole) const;

  // The model in the object under `key`, as a part of this one: of the class with `head` (a suffix of `family`'s heads,
  // such as "Model"), whatever architectures the object names. A missing object, or null, has the defaults of the class.
  ModelConfig nested(std::string_view key, const Family& family, std::string_view head) const;
  // The same with the family that the object itself names, by model_type or _class_name; throws where it names none.
  ModelConfig nested(std::string_view key, std::string_view head) const;

  // This object once more, read as a model of another family.
  ModelConfig as(const Family& family, std::string_view head) const;

  const std::string& source() const { return root_.source(); }
  const Family& family() const { return *family_; }
  // From `architectures`: the head, and where the base model lies.
  const Head& head() const { return *head_; }
  const std::string& base_prefix() const { return base_prefix_; }
  // The number of entries of id2label; without it num_labels; without either 2.
  std::uint64_t labels() const;
  bool ties_embeddings(bool class_default);

  // Something the user should know, besides what is noted of itself.
  void note(const std::string& text) { findings_->notes.push_back(path_ + text); }
  // What the user should know: assumptions and defaults, those of nested models too.
  std::vector<std::string> notes() const;

 private:
  struct Findings {
    std::vector<std::string> notes;
    std::vector<std::string> defaults;  // "hidden_size 4096"
  };

  ModelConfig(const ModelConfig& parent, JsonView root, const Family& family, std::string_view head);
  JsonView find(std::string_view attribute) const;
  void choose_head();

  JsonView root_;
  const Family* family_;
  const Head* head_ = nullptr;
  std::string base_prefix_;
  std::string path_;                    // "text_config." of a nested one
  std::shared_ptr<Findings> findings_;  // one for the whole file
};

}  // namespace shardplan
