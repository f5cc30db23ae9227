#include "tests/support/saved_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "tests/support/synthetic_client.h"

namespace shardplan::test {

SavedState::SavedState(const Catalog& catalog) {
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) {
    names_.push_back(name);
    elements_.push_back(elements(tensor.shape));
  });
}

void SavedState::save(ZeroOptimizer& optimizer) {
  const std::lock_guard lock(mutex_);
  step_state_ = optimizer.step_state();
  optimizer.visit_state([&](const StateRange& range, const ConstElements& part) {
    if (range.name != names_.at(range.tensor)) flaw_ = fmt::format("tensor {} is called {}", range.tensor, range.name);
    if (part.elements == 0 || part.elements > kStateChunk) flaw_ = fmt::format("{} elements at once", part.elements);
    Values& values = values_[{range.tensor, range.kind}];
    if (values.visits.empty()) {
      values.dtype = part.dtype;
      values.visits.resize(elements_[range.tensor]);
      values.bytes.resize(bytes_for(part.dtype, elements_[range.tensor]).count());
    }
    if (values.dtype != part.dtype) flaw_ = fmt::format("{} has two dtypes", range.name);
    std::memcpy(&values.bytes.at(bytes_for(part.dtype, range.first).count()), part.data,
                bytes_for(part.dtype, part.elements).count());
    for (std::uint64_t i = 0; i < part.elements; ++i) ++values.visits.at(range.first + i);
  });
}

void SavedState::load(ZeroOptimizer& optimizer) const {
  optimizer.load_state(step_state_, [&](const StateRange& range, const Elements& part) {
    const Values& values = values_.at({range.tensor, range.kind});
    if (values.dtype != part.dtype) throw std::runtime_error(fmt::format("{} has another dtype", range.name));
    if (range.first + part.elements > values.visits.size()) throw std::runtime_error("a range beyond the tensor");
    std::memcpy(part.data, values.bytes.data() + bytes_for(part.dtype, range.first).count(),
                bytes_for(part.dtype, part.elements).count());
  });
}

std::string SavedState::flaw() const {
  for (const auto& [key, values] : values_) {
    const auto found = std::find_if(values.visits.begin(), values.visits.end(), [](auto count) { return count != 1; });
    if (found == values.visits.end()) continue;
    return fmt::format("{} {}: element {} was visited {} times", name(key.second), names_[key.first],
                       found - values.visits.begin(), *found);
  }
  return flaw_;
}

std::size_t SavedState::count(StateKind kind) const {
  return static_cast<std::size_t>(
      std::count_if(values_.begin(), values_.end(), [&](const auto& entry) { return entry.first.second == kind; }));
}

std::uint64_t SavedState::digest() const {
  std::uint64_t result = test::digest(std::as_bytes(std::span(&step_state_, 1)));
  for (const auto& [key, values] : values_) {
    const std::array<std::uint64_t, 3> head{key.first, static_cast<std::uint64_t>(key.second),
                                            static_cast<std::uint64_t>(values.dtype)};
    result = test::digest(values.bytes, test::digest(std::as_bytes(std::span(head)), result));
  }
  return result;
}

}  // namespace shardplan::test
