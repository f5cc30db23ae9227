#include "planner/activations/unit_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace shardplan::autograd {

UnitView::UnitView(Tape& tape, const Modules& modules, const UnitRun& run, std::uint64_t index, DType dtype)
    : tape_(tape), modules_(modules), run_(run), index_(index), dtype_(dtype) {}

const Module* UnitView::find(std::string_view name) const {
  const auto found = std::find_if(modules_.begin(), modules_.end(), [&](const Module& m) { return m.name == name; });
  return found == modules_.end() ? nullptr : &*found;
}

const Module& UnitView::module(std::string_view name) const {
  const Module* found = find(name);
  SHARDPLAN_CHECK(found != nullptr, fmt::format("unit {} has no module {}", run_.name, name));
  return *found;
}

const Module* UnitView::first_of(ModuleKind kind, std::string_view name) const {
  const auto found = std::find_if(modules_.begin(), modules_.end(), [&](const Module& m) {
    return m.kind == kind &&
           (name.empty() || (m.name.size() > name.size() && m.name.starts_with(name) && m.name[name.size()] == '.'));
  });
  return found == modules_.end() ? nullptr : &*found;
}

Value UnitView::tensor(std::string_view name) const {
  const auto found =
      std::find_if(run_.tensors.begin(), run_.tensors.end(), [&](const Tensor& t) { return t.name == name; });
  if (found == run_.tensors.end()) return {};
  const std::string whole = found->tied_to.empty() ? tensor_name(run_, index_, *found) : found->tied_to;
  return tape_.parameter(whole, found->shape, found->dtype.value_or(dtype_), found->trainable);
}

Parameters UnitView::operator[](std::string_view name) const {
  const Module& found = module(name);
  return {&found, tensor(fmt::format("{}.weight", found.name)), tensor(fmt::format("{}.bias", found.name))};
}

}  // namespace shardplan::autograd
