#include "planner/families/module.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

Tensor weight(Shape shape) {
  return {.name = "weight", .shape = std::move(shape), .dtype = {}, .tied_to = {}};
}
Tensor bias_of(std::uint64_t width) {
  return {.name = "bias", .shape = {width}, .dtype = {}, .tied_to = {}};
}

Module module(std::string name, ModuleKind kind, std::uint64_t input, std::uint64_t output,
              std::vector<Tensor> tensors = {}) {
  Module module;
  module.name = std::move(name);
  module.kind = kind;
  module.input = input;
  module.output = output;
  module.tensors = std::move(tensors);
  return module;
}

}  // namespace

std::string_view name(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::embedding:
      return "embedding";
    case ModuleKind::linear:
      return "linear";
    case ModuleKind::layer_norm:
      return "layer_norm";
    case ModuleKind::rms_norm:
      return "rms_norm";
    case ModuleKind::attention:
      return "attention";
    case ModuleKind::activation:
      return "activation";
    case ModuleKind::multiply:
      return "multiply";
  }
  SHARDPLAN_CHECK(false, "an unknown kind of module");
  return {};
}

Modules embedding(std::string name, std::uint64_t rows, std::uint64_t width) {
  return {module(std::move(name), ModuleKind::embedding, rows, width, {weight({rows, width})})};
}

Modules linear(std::string name, std::uint64_t input, std::uint64_t output, bool bias) {
  std::vector<Tensor> tensors{weight({output, input})};
  if (bias) tensors.push_back(bias_of(output));
  return {module(std::move(name), ModuleKind::linear, input, output, std::move(tensors))};
}

Modules transposed_linear(std::string name, std::uint64_t input, std::uint64_t output) {
  return {module(std::move(name), ModuleKind::linear, input, output, {weight({input, output}), bias_of(output)})};
}

Modules layer_norm(std::string name, std::uint64_t width) {
  return {module(std::move(name), ModuleKind::layer_norm, width, width, {weight({width}), bias_of(width)})};
}

Modules rms_norm(std::string name, std::uint64_t width) {
  return {module(std::move(name), ModuleKind::rms_norm, width, width, {weight({width})})};
}

Modules attention(std::string name, const AttentionSizes& sizes) {
  const std::uint64_t queries = checked_multiply(sizes.heads, sizes.head_size);
  const std::uint64_t keys = checked_multiply(sizes.kv_heads, sizes.head_size);
  Module core =
      module(std::move(name), ModuleKind::attention, checked_add(queries, checked_multiply(2, keys)), queries);
  core.attention = sizes;
  return {std::move(core)};
}

Modules activation(std::string name, std::string function, std::uint64_t width) {
  Module core = module(std::move(name), ModuleKind::activation, width, width);
  core.function = std::move(function);
  return {std::move(core)};
}

Modules multiply(std::string name, std::uint64_t width) {
  return {module(std::move(name), ModuleKind::multiply, checked_multiply(2, width), width)};
}

Modules tied(Modules modules, std::string owner) {
  SHARDPLAN_CHECK(modules.size() == 1 && !modules[0].tensors.empty(), "only one module with a weight can be tied");
  modules[0].tensors[0].tied_to = std::move(owner);
  return modules;
}

Modules join(std::initializer_list<Modules> parts) {
  Modules all;
  for (const Modules& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

Modules below(std::string_view prefix, Modules modules) {
  if (prefix.empty()) return modules;
  for (Module& module : modules) module.name = fmt::format("{}.{}", prefix, module.name);
  return modules;
}

}  // namespace shardplan
