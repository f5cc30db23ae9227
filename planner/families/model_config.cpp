#include "planner/families/model_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "base/error.h"

namespace shardplan {

ModelConfig::ModelConfig(JsonView root, const Family& family)
    : root_(root), family_(&family), findings_(std::make_shared<Findings>()) {
  choose_head();
}

ModelConfig::ModelConfig(const ModelConfig& parent, JsonView root, const Family& family, std::string_view head)
    : root_(root),
      family_(&family),
      path_(fmt::format("{}{}.", parent.path_, root.key())),
      findings_(parent.findings_) {
  for (const Head& candidate : family.heads) {
    if (candidate.suffix == head) head_ = &candidate;
  }
  SHARDPLAN_CHECK(head_ != nullptr, "a nested model has a head that its family has");
  base_prefix_ = std::string(head_->base);
}

ModelConfig ModelConfig::nested(std::string_view key, const Family& family, std::string_view head) const {
  const JsonView object = root_.exists() ? root_[key] : root_;
  if (object.exists() && !object.is_null() && !object.is_object()) object.fail_expected("an object");
  return {*this, object.is_null() ? object.absent() : object, family, head};
}

ModelConfig ModelConfig::nested(std::string_view key, std::string_view head) const {
  const Family& family = require_family(root_[key]);
  for (const Head& candidate : family.heads) {
    if (candidate.suffix == head) return {*this, root_[key], family, head};
  }
  root_[key].fail(fmt::format("expected a model with a head {}{}", family.class_stem, head));
}

ModelConfig ModelConfig::as(const Family& family, std::string_view head) const {
  ModelConfig same(*this, root_, family, head);
  same.path_ = path_;
  return same;
}

JsonView ModelConfig::find(std::string_view attribute) const {
  if (!root_.exists()) return root_;
  JsonView found = root_[attribute];
  for (const Alias& alias : family_->aliases) {
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
  findings_->defaults.push_back(fmt::format("{}{} {}", path_, attribute, class_default));
  return class_default;
}

std::uint64_t ModelConfig::required_size(std::string_view attribute) const {
  return find(attribute).as_positive(kLargestSize);
}

std::uint64_t ModelConfig::listed(std::string_view attribute, std::uint64_t class_default) {
  const std::uint64_t value = size(attribute, class_default);
  if (value > kMostListed) find(attribute).as_positive(kMostListed);
  return value;
}

std::optional<std::uint64_t> ModelConfig::optional_size(std::string_view attribute) const {
  if (!has(attribute)) return std::nullopt;
  return find(attribute).as_positive(kLargestSize);
}

std::uint64_t ModelConfig::count(std::string_view attribute, std::uint64_t class_default) {
  const JsonView value = find(attribute);
  if (value.exists()) return value.is_null() ? 0 : value.as_count(kLargestSize);
  findings_->defaults.push_back(fmt::format("{}{} {}", path_, attribute, class_default));
  return class_default;
}

std::uint64_t ModelConfig::count_or_none(std::string_view attribute) const {
  if (!has(attribute) || find(attribute).is_minus_one()) return 0;
  return find(attribute).as_count(kLargestSize);
}

bool ModelConfig::flag(std::string_view attribute, bool class_default) const {
  const JsonView value = find(attribute);
  return !value.is_null() && value.as_bool_or(class_default);
}

double ModelConfig::factor(std::string_view attribute, double class_default) const {
  const JsonView value = find(attribute);
  if (!value.exists()) return class_default;
  const double number = value.as_number();
  if (!(number > 0 && number <= static_cast<double>(kLargestSize))) value.fail_expected("a positive number");
  return number;
}

double ModelConfig::number(std::string_view attribute, double class_default) const {
  const JsonView value = find(attribute);
  if (!value.exists()) return class_default;
  const double number = value.as_number();
  if (!(number >= 0 && number <= 1)) value.fail_expected("a number from 0 to 1");
  return number;
}

std::int64_t ModelConfig::index(std::string_view attribute, std::int64_t class_default) const {
  const JsonView value = find(attribute);
  if (!value.exists()) return class_default;
  if (!value.is_number()) value.fail_expected("a whole number");
  const double number = value.as_number();
  constexpr double most = 1e9;
  if (number != std::floor(number) || std::abs(number) > most) value.fail_expected("a whole number");
  return static_cast<std::int64_t>(number);
}

std::string ModelConfig::text(std::string_view attribute, std::string_view class_default) const {
  const JsonView value = find(attribute);
  return std::string(value.exists() ? value.as_string() : class_default);
}

std::optional<std::vector<std::uint64_t>> ModelConfig::counts(std::string_view attribute) const {
  if (!has(attribute)) return std::nullopt;
  std::vector<std::uint64_t> values;
  for (const JsonView element : find(attribute).elements()) values.push_back(element.as_count(kLargestSize));
  return values;
}

std::optional<std::vector<std::string>> ModelConfig::texts(std::string_view attribute) const {
  if (!has(attribute)) return std::nullopt;
  std::vector<std::string> values;
  for (const JsonView element : find(attribute).elements()) values.emplace_back(element.as_string());
  return values;
}

std::vector<std::string_view> ModelConfig::names(std::string_view attribute) const {
  if (!has(attribute)) return {};
  std::vector<std::string_view> names;
  for (const JsonView member : find(attribute).members()) names.push_back(member.key());
  return names;
}

bool ModelConfig::has(std::string_view attribute) const {
  const JsonView value = find(attribute);
  return value.exists() && !value.is_null();
}

void ModelConfig::fail(std::string_view attribute, const std::string& problem) const {
  find(attribute).fail(problem);
}

std::string ModelConfig::found(std::string_view attribute, std::uint64_t value) const {
  return find(attribute).exists() ? fmt::format("found {}", value) : fmt::format("absent, which means {}", value);
}

void ModelConfig::require_divisor(std::string_view attribute, std::uint64_t value, std::string_view whole_name,
                                  std::uint64_t whole) const {
  if (whole % value == 0) return;
  fail(attribute, fmt::format("expected a divisor of {}, {}, {}", whole_name, whole, found(attribute, value)));
}

std::uint64_t ModelConfig::labels() const {
  const JsonView names = find("id2label");
  if (!names.exists() || names.is_null()) return optional_size("num_labels").value_or(2);
  if (!names.is_object() || names.size() == 0) names.fail_expected("an object with one entry for each label");
  return names.size();
}

bool ModelConfig::ties_embeddings(bool class_default) {
  const JsonView value = find("tie_word_embeddings");
  if (!value.exists() && class_default)
    findings_->notes.emplace_back(path_ + "tie_word_embeddings is absent: taken as true");
  return !value.is_null() && value.as_bool_or(class_default);
}

std::vector<std::string> ModelConfig::notes() const {
  std::vector<std::string> notes = findings_->notes;
  if (!findings_->defaults.empty()) {
    notes.push_back(fmt::format("not in the file, so the defaults of model_type {} were taken: {}", family_->model_type,
                                fmt::join(findings_->defaults, ", ")));
  }
  return notes;
}

void ModelConfig::choose_head() {
  head_ = &family_->heads.front();
  const std::string assumed = fmt::format("{}{}", family_->class_stem, head_->suffix);
  const JsonView architectures = root_["architectures"];
  const bool given = architectures.exists() && !architectures.is_null();
  const bool named = given && architectures.elements().begin() != architectures.elements().end();
  if (!named) {
    if (family_->heads.size() > 1)
      findings_->notes.push_back(fmt::format("architectures is absent: taken as {}", assumed));
  } else {
    const std::string_view architecture = (*architectures.elements().begin()).as_string();
    bool known = false;
    for (const Head& head : family_->heads) {
      if (architecture != fmt::format("{}{}", family_->class_stem, head.suffix)) continue;
      head_ = &head;
      known = true;
    }
    if (!known)
      findings_->notes.push_back(fmt::format("architecture {} is not known: taken as {}", architecture, assumed));
  }
  base_prefix_ = std::string(head_->base);
}

}  // namespace shardplan
