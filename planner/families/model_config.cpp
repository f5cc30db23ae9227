#include "planner/families/model_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"

namespace shardplan {

ModelConfig::ModelConfig(JsonView root, const Family& family) : root_(root), family_(family) {
  choose_head();
}

JsonView ModelConfig::find(std::string_view attribute) const {
  JsonView found = root_[attribute];
  for (const Alias& alias : family_.aliases) {
    if (alias.attribute != attribute) continue;
    const JsonView other = root_[alias.key];
    if (other.exists() && found.exists() && other.shown() != found.shown()) {
      other.fail(
          fmt::format("is {}, but the file says {} for {}, its other name", other.shown(), found.shown(), attribute));
    }
    if (other.exists()) found = other;
  }
  return found;
}

std::uint64_t ModelConfig::size(std::string_view attribute, std::uint64_t class_default) {
  const JsonView value = find(attribute);
  if (value.exists()) return value.as_positive(kLargestSize);
  defaults_.push_back(fmt::format("{} {}", attribute, class_default));
  return class_default;
}

std::optional<std::uint64_t> ModelConfig::optional_size(std::string_view attribute) const {
  const JsonView value = find(attribute);
  if (!value.exists() || value.is_null()) return std::nullopt;
  return value.as_positive(kLargestSize);
}

bool ModelConfig::flag(std::string_view attribute, bool class_default) const {
  return find(attribute).as_bool_or(class_default);
}

std::string ModelConfig::text(std::string_view attribute, std::string_view class_default) const {
  const JsonView value = find(attribute);
  return std::string(value.exists() ? value.as_string() : class_default);
}

void ModelConfig::fail(std::string_view attribute, const std::string& problem) const {
  find(attribute).fail(problem);
}

std::uint64_t ModelConfig::labels() const {
  if (const auto labels = optional_size("num_labels")) return *labels;
  const JsonView names = root_["id2label"];
  if (!names.exists() || names.is_null()) return 2;
  if (!names.is_object() || names.size() == 0) names.fail_expected("an object with one entry for each label");
  return names.size();
}

bool ModelConfig::ties_embeddings(bool class_default) {
  const JsonView value = find("tie_word_embeddings");
  if (!value.exists() && class_default) notes_.emplace_back("tie_word_embeddings is absent: taken as true");
  return value.as_bool_or(class_default);
}

std::vector<std::string> ModelConfig::notes() const {
  std::vector<std::string> notes = notes_;
  if (!defaults_.empty()) {
    notes.push_back(fmt::format("not in the file, so the defaults of model_type {} were taken: {}", family_.model_type,
                                fmt::join(defaults_, ", ")));
  }
  return notes;
}

void ModelConfig::choose_head() {
  head_ = &family_.heads.front();
  const std::string assumed = fmt::format("{}{}", family_.class_stem, head_->suffix);
  const JsonView architectures = root_["architectures"];
  const bool given = architectures.exists() && !architectures.is_null();
  const bool named = given && architectures.elements().begin() != architectures.elements().end();
  if (!named) {
    notes_.push_back(fmt::format("architectures is absent: taken as {}", assumed));
  } else {
    const std::string_view architecture = (*architectures.elements().begin()).as_string();
    bool known = false;
    for (const Head& head : family_.heads) {
      if (architecture != fmt::format("{}{}", family_.class_stem, head.suffix)) continue;
      head_ = &head;
      known = true;
    }
    if (!known) notes_.push_back(fmt::format("architecture {} is not known: taken as {}", architecture, assumed));
  }
  base_prefix_ = std::string(head_->base);
}

}  // namespace shardplan
