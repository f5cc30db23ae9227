#include "planner/catalog.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/glob.h"

namespace shardplan {
namespace {

bool continues(const UnitRun& run, const UnitRun& unit) {
  return run.numbered && unit.numbered && run.name == unit.name && run.first_number + run.count == unit.first_number &&
         run.tensors == unit.tensors;
}

void append(std::vector<UnitRun>& runs, UnitRun unit) {
  if (!runs.empty() && continues(runs.back(), unit)) {
    runs.back().count = checked_add(runs.back().count, unit.count);
  } else {
    runs.push_back(std::move(unit));
  }
}

// Sum over owned tensors of one unit.
template <typename Predicate>
std::uint64_t sum_elements(const Catalog& catalog, Predicate counts) {
  std::uint64_t total = 0;
  for (const UnitRun& run : catalog.runs) {
    std::uint64_t unit = 0;
    for (const Tensor& tensor : run.tensors) {
      if (tensor.tied_to.empty() && counts(tensor)) unit = checked_add(unit, elements(tensor.shape));
    }
    total = checked_add(total, checked_multiply(unit, run.count));
  }
  return total;
}

struct Owner {
  std::uint64_t unit = 0;
  std::size_t position = 0;  // in its unit
  const Tensor* tensor = nullptr;
};

// Finds the tensor with this whole name without expanding runs.
std::optional<Owner> find_tensor(const Catalog& catalog, std::string_view whole_name) {
  std::uint64_t first_unit = 0;
  for (const UnitRun& run : catalog.runs) {
    std::string_view rest = whole_name;
    std::uint64_t index = 0;
    bool candidate = true;
    if (run.numbered) {
      candidate = rest.starts_with(run.name) && rest.size() > run.name.size() && rest[run.name.size()] == '.';
      if (candidate) {
        rest.remove_prefix(run.name.size() + 1);
        std::uint64_t number = 0;
        std::size_t digits = 0;
        while (digits < rest.size() && digits < 19 && rest[digits] >= '0' && rest[digits] <= '9') {
          number = number * 10 + static_cast<std::uint64_t>(rest[digits++] - '0');
        }
        // A number as names are printed: no leading zero.
        candidate = digits > 0 && (digits == 1 || rest[0] != '0') && digits < rest.size() && rest[digits] == '.' &&
                    number >= run.first_number && number - run.first_number < run.count;
        if (candidate) {
          index = number - run.first_number;
          rest.remove_prefix(digits + 1);
        }
      }
    }
    if (candidate) {
      for (std::size_t i = 0; i < run.tensors.size(); ++i) {
        if (run.tensors[i].name == rest) return Owner{first_unit + index, i, &run.tensors[i]};
      }
    }
    first_unit += run.count;
  }
  return std::nullopt;
}

}  // namespace

std::uint64_t elements(const Shape& shape) {
  // A dim of 0 makes the product 0, whatever the others would overflow to.
  if (std::find(shape.begin(), shape.end(), 0U) != shape.end()) return 0;
  std::uint64_t product = 1;
  for (const std::uint64_t dim : shape) product = checked_multiply(product, dim);
  return product;
}

std::uint64_t unit_count(const Catalog& catalog) {
  std::uint64_t count = 0;
  for (const UnitRun& run : catalog.runs) count = checked_add(count, run.count);
  return count;
}

std::uint64_t tensor_count(const Catalog& catalog) {
  std::uint64_t count = 0;
  for (const UnitRun& run : catalog.runs) count = checked_add(count, checked_multiply(run.count, run.tensors.size()));
  return count;
}

std::uint64_t parameter_elements(const Catalog& catalog) {
  return sum_elements(catalog, [](const Tensor& tensor) { return !tensor.scales; });
}

std::uint64_t trainable_elements(const Catalog& catalog) {
  return sum_elements(catalog, [](const Tensor& tensor) { return tensor.trainable; });
}

bool has_tensor(const Catalog& catalog, std::string_view whole_name) {
  return find_tensor(catalog, whole_name).has_value();
}

UnitPlace place_of_unit(const Catalog& catalog, std::uint64_t unit) {
  for (std::size_t run = 0; run < catalog.runs.size(); ++run) {
    if (unit < catalog.runs[run].count) return {run, unit};
    unit -= catalog.runs[run].count;
  }
  SHARDPLAN_CHECK(false, "a unit beyond the end of the catalog");
  return {};
}

std::string unit_name(const UnitRun& run, std::uint64_t index) {
  return run.numbered ? fmt::format("{}.{}", run.name, run.first_number + index) : run.name;
}

std::string tensor_name(const UnitRun& run, std::uint64_t index, const Tensor& tensor) {
  return run.numbered ? fmt::format("{}.{}.{}", run.name, run.first_number + index, tensor.name) : tensor.name;
}

std::vector<UnitTie> unit_ties(const Catalog& catalog) {
  std::vector<UnitTie> ties;
  std::uint64_t first_unit = 0;
  for (const UnitRun& run : catalog.runs) {
    for (std::size_t i = 0; i < run.tensors.size(); ++i) {
      const Tensor& tensor = run.tensors[i];
      if (tensor.tied_to.empty()) continue;
      const auto fail = [&](const std::string& problem) {
        throw ConfigError(catalog.name, tensor_name(run, 0, tensor),
                          fmt::format("is tied to '{}', {}", tensor.tied_to, problem));
      };
      const std::optional<Owner> owner = find_tensor(catalog, tensor.tied_to);
      if (!owner) fail("which is not in the catalog");
      if (!owner->tensor->tied_to.empty()) fail("which is itself tied: name the owner");
      if (owner->tensor->shape != tensor.shape) fail("which has another shape");
      if (owner->unit > first_unit || (owner->unit == first_unit && owner->position >= i)) {
        fail("which comes later: the first of tied tensors is the owner");
      }
      for (std::uint64_t k = 0; k < run.count; ++k) {
        const UnitTie tie{first_unit + k, owner->unit};
        if (tie.unit != tie.owner) ties.push_back(tie);
      }
    }
    first_unit += run.count;
  }
  std::sort(ties.begin(), ties.end(),
            [](const UnitTie& a, const UnitTie& b) { return a.unit != b.unit ? a.unit < b.unit : a.owner < b.owner; });
  ties.erase(std::unique(ties.begin(), ties.end()), ties.end());
  return ties;
}

std::uint64_t freeze(Catalog& catalog, std::string_view glob) {
  constexpr std::uint64_t kMostUnits = 1'000'000;
  if (unit_count(catalog) > kMostUnits) {
    throw ConfigError(catalog.name, "", fmt::format("has more than {} units: too many to freeze by name", kMostUnits));
  }
  std::uint64_t matched = 0;
  std::vector<UnitRun> runs;
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      UnitRun unit = run;
      unit.first_number = run.first_number + i;
      unit.count = 1;
      for (Tensor& tensor : unit.tensors) {
        if (!glob_matches(glob, tensor_name(unit, 0, tensor))) continue;
        if (!tensor.tied_to.empty() && !glob_matches(glob, tensor.tied_to)) {
          const std::optional<Owner> owner = find_tensor(catalog, tensor.tied_to);
          if (owner && owner->tensor->trainable) {
            throw ConfigError(
                catalog.name, tensor_name(unit, 0, tensor),
                fmt::format("is tied to '{0}', one parameter with two names: freeze '{0}' too", tensor.tied_to));
          }
        }
        tensor.trainable = false;
        ++matched;
      }
      append(runs, std::move(unit));
    }
  }
  catalog.runs = std::move(runs);
  return matched;
}

CatalogBuilder::CatalogBuilder(std::string name, std::string family) {
  catalog_.name = std::move(name);
  catalog_.family = std::move(family);
}

void CatalogBuilder::close_unit() {
  if (open_) append(catalog_.runs, std::move(*open_));
  open_.reset();
}

void CatalogBuilder::begin_unit(std::string unit) {
  close_unit();
  open_ = UnitRun{.name = std::move(unit), .tensors = {}};
}

void CatalogBuilder::begin_unit(std::string prefix, std::uint64_t number) {
  close_unit();
  open_ = UnitRun{.name = std::move(prefix), .numbered = true, .first_number = number, .tensors = {}};
}

void CatalogBuilder::add(Tensor tensor) {
  SHARDPLAN_CHECK(open_.has_value(), "add() before begin_unit()");
  open_->tensors.push_back(std::move(tensor));
}

void CatalogBuilder::add_run(std::string prefix, std::uint64_t first, std::uint64_t count,
                             std::vector<Tensor> tensors) {
  close_unit();
  if (count == 0) return;
  append(catalog_.runs, UnitRun{.name = std::move(prefix),
                                .numbered = true,
                                .first_number = first,
                                .count = count,
                                .tensors = std::move(tensors)});
}

Catalog CatalogBuilder::finish() {
  close_unit();
  return std::move(catalog_);
}

}  // namespace shardplan
