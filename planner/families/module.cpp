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
    case ModuleKind::convolution:
      return "convolution";
    case ModuleKind::layer_norm:
      return "layer_norm";
    case ModuleKind::rms_norm:
      return "rms_norm";
    case ModuleKind::group_norm:
      return "group_norm";
    case ModuleKind::attention:
      return "attention";
    case ModuleKind::scan:
      return "scan";
    case ModuleKind::activation:
      return "activation";
    case ModuleKind::multiply:
      return "multiply";
    case ModuleKind::router:
      return "router";
    case ModuleKind::dropout:
      return "dropout";
    case ModuleKind::residual:
      return "residual";
    case ModuleKind::parameter:
      return "parameter";
  }
  SHARDPLAN_CHECK(false, "an unknown kind of module");
  return {};
}

std::string name_of_tensor(const Module& module, const Tensor& tensor) {
  return tensor.name.empty() ? module.name : fmt::format("{}.{}", module.name, tensor.name);
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

Modules convolution(std::string name, std::uint64_t input, std::uint64_t output, const Shape& kernel, bool bias,
                    std::uint64_t groups) {
  SHARDPLAN_CHECK(groups > 0 && input % groups == 0, "a convolution's groups share out its channels");
  Shape shape{output, input / groups};
  shape.insert(shape.end(), kernel.begin(), kernel.end());
  std::vector<Tensor> tensors{weight(std::move(shape))};
  if (bias) tensors.push_back(bias_of(output));
  return {module(std::move(name), ModuleKind::convolution, input, output, std::move(tensors))};
}

Modules layer_norm(std::string name, std::uint64_t width, bool bias) {
  std::vector<Tensor> tensors{weight({width})};
  if (bias) tensors.push_back(bias_of(width));
  return {module(std::move(name), ModuleKind::layer_norm, width, width, std::move(tensors))};
}

Modules plain_norm(std::string name, std::uint64_t width) {
  return {module(std::move(name), ModuleKind::layer_norm, width, width)};
}

Modules rms_norm(std::string name, std::uint64_t width) {
  return {module(std::move(name), ModuleKind::rms_norm, width, width, {weight({width})})};
}

Modules group_norm(std::string name, std::uint64_t channels) {
  return {module(std::move(name), ModuleKind::group_norm, channels, channels, {weight({channels}), bias_of(channels)})};
}

Modules attention(std::string name, const AttentionSizes& sizes) {
  const std::uint64_t value_size = sizes.value_size > 0 ? sizes.value_size : sizes.head_size;
  const std::uint64_t queries = checked_multiply(sizes.heads, sizes.head_size);
  const std::uint64_t keys_and_values = checked_multiply(sizes.kv_heads, checked_add(sizes.head_size, value_size));
  Module core = module(std::move(name), ModuleKind::attention, checked_add(queries, keys_and_values),
                       checked_multiply(sizes.heads, value_size));
  core.attention = sizes;
  return {std::move(core)};
}

Modules scan(std::string name, std::uint64_t channels, std::uint64_t state) {
  return {module(std::move(name), ModuleKind::scan, checked_multiply(channels, state), channels)};
}

Modules activation(std::string name, std::string function, std::uint64_t width) {
  Module core = module(std::move(name), ModuleKind::activation, width, width);
  core.function = std::move(function);
  return {std::move(core)};
}

Modules multiply(std::string name, std::uint64_t width) {
  return {module(std::move(name), ModuleKind::multiply, checked_multiply(2, width), width)};
}

Modules dropout(std::string name, double rate) {
  if (rate == 0) return {};
  Module core = module(std::move(name), ModuleKind::dropout, 0, 0);
  core.rate = rate;
  return {std::move(core)};
}

Modules residual(std::string way) {
  Module sum = module("residual", ModuleKind::residual, 0, 0);
  sum.function = std::move(way);
  return {std::move(sum)};
}

Modules router(std::string name, std::uint64_t input, std::uint64_t experts, bool bias) {
  Modules modules = linear(std::move(name), input, experts, bias);
  modules[0].kind = ModuleKind::router;
  return modules;
}

Modules parameter(std::string name, Shape shape) {
  Tensor tensor = weight(std::move(shape));
  tensor.name.clear();
  return {module(std::move(name), ModuleKind::parameter, 0, 0, {std::move(tensor)})};
}

Modules tied(Modules modules, std::string owner) {
  SHARDPLAN_CHECK(modules.size() == 1 && !modules[0].tensors.empty(), "only one module with a weight can be tied");
  modules[0].tensors[0].tied_to = std::move(owner);
  return modules;
}

Modules tied(Modules modules, std::string weight, std::string bias) {
  SHARDPLAN_CHECK(modules.size() == 1 && modules[0].tensors.size() == 2, "only one module with a bias can be tied");
  modules[0].tensors[1].tied_to = std::move(bias);
  return tied(std::move(modules), std::move(weight));
}

Modules frozen(Modules modules) {
  for (Module& module : modules) {
    for (Tensor& tensor : module.tensors) tensor.trainable = false;
  }
  return modules;
}

Modules routed(Modules modules, const Routing& routing) {
  for (Module& module : modules) module.routing = routing;
  return modules;
}

Modules join(std::initializer_list<Modules> parts) {
  Modules all;
  for (const Modules& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

Modules below(std::string_view prefix, Modules modules) {
  if (prefix.empty()) return modules;
  for (Module& module : modules) {
    module.name = module.name.empty() ? std::string(prefix) : fmt::format("{}.{}", prefix, module.name);
  }
  return modules;
}

Modules repeated(std::string_view name, std::uint64_t count, const Modules& modules) {
  Modules all;
  all.reserve(modules.size() * count);
  for (std::uint64_t i = 0; i < count; ++i) {
    const Modules one = below(fmt::format("{}.{}", name, i), modules);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

}  // namespace shardplan
