#include "planner/activations/unit_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace shardplan::autograd {

UnitView::UnitView(Tape& tape, const Modules& modules, const UnitRun& run, std::uint64_t index, DType dtype,
                   double adapter_dropout)
    : tape_(tape), modules_(modules), run_(run), index_(index), dtype_(dtype), adapter_dropout_(adapter_dropout) {}

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

Adapter UnitView::joined_adapter(std::string_view name, std::span<const Parameters> parts) const {
  const Adapter& first = parts[0].adapter;
  std::uint64_t rows = 0;
  std::uint64_t output = 0;
  for (const Parameters& part : parts) {
    rows += part.adapter.a.size(0);
    output += part.output;
  }
  const std::string whole = fmt::format("{}.{}", unit_name(run_, index_), name);
  return {.a = tape_.parameter(whole + ".lora_A", {rows, first.a.size(1)}, first.a.dtype(), true),
          .b = tape_.parameter(whole + ".lora_B", {output, first.b.size(1)}, first.b.dtype(), true),
          .dropout = adapter_dropout_};
}

void UnitView::passes(std::string_view module, const Value& x) const {
  if (const Module* found = find(module)) tape_.passes(found->name, x);
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
  return {&found,
          tensor(fmt::format("{}.weight", found.name)),
          tensor(fmt::format("{}.bias", found.name)),
          {.a = tensor(fmt::format("{}.lora_A.default.weight", found.name)),
           .b = tensor(fmt::format("{}.lora_B.default.weight", found.name)),
           .dropout = adapter_dropout_},
          found.output};
}

Parameters UnitView::joined(std::string_view name, std::span<const Parameters> parts) const {
  Parameters whole;
  whole.module = parts[0].module;
  for (const Parameters& part : parts) whole.output += part.output;
  const auto tensor = [&](const char* kind, const Shape& shape, const Value& first) {
    return tape_.parameter(fmt::format("{}.{}.{}", unit_name(run_, index_), name, kind), shape, first.dtype(),
                           first.requires_grad());
  };
  whole.weight = tensor("weight", {whole.output, parts[0].weight.size(1)}, parts[0].weight);
  if (parts[0].bias.defined()) whole.bias = tensor("bias", {whole.output}, parts[0].bias);
  return whole;
}

}  // namespace shardplan::autograd
