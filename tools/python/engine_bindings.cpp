#include <fmt/format.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tools/memcalc/options.h"
#include "tools/python/bindings.h"
#include "tools/python/engine.h"

namespace shardplan::python {
namespace {

using Addressed = std::vector<std::tuple<std::string, std::uintptr_t, std::string>>;  // name, address, dtype
using Group = std::tuple<double, double, double, double, double>;                     // lr, betas, eps, weight_decay
using Scaling = std::tuple<double, double, double, std::uint64_t>;  // initial, growth, backoff, window

DType dtype_of(const std::string& text) {
  const auto dtype = parse_dtype(text);
  if (!dtype || (*dtype != DType::f32 && *dtype != DType::bf16 && *dtype != DType::f16)) {
    throw ConfigError("parameters", "", fmt::format("{}: expected float32, bfloat16 or float16", text));
  }
  return *dtype;
}

ClientTensors tensors_of(const Addressed& addressed) {
  ClientTensors tensors;
  for (const auto& [name, address, dtype] : addressed) tensors[name] = {address, dtype_of(dtype)};
  return tensors;
}

LossScaling scaling_of(const std::optional<Scaling>& given) {
  if (!given) return {};
  LossScaling scaling = default_scaling(LossScaleRule::torch);
  std::tie(scaling.initial, scaling.growth, scaling.backoff, scaling.window) = *given;
  scaling.minimum = 0;
  return scaling;
}

// `words` are flags of memcalc plan; the model is `tensors`, of which `group_of` says of which group each is.
void construct(Engine* self, const std::string& tensors, std::vector<std::string> words,
               const std::vector<Group>& given, const std::vector<std::pair<std::string, std::uint32_t>>& group_of,
               double clip_norm, const std::optional<Scaling>& scaling, Communicator& communicator,
               const Addressed& initial) {
  words.insert(words.begin(), {"plan", "parameters"});
  const Setup setup = memcalc::read_command_line(std::move(words)).plan.setup;
  ZeroOptions options;
  options.groups.clear();
  for (const auto& [learning_rate, beta1, beta2, eps, weight_decay] : given) {
    options.groups.push_back(
        {fmt::format("param_groups[{}]", options.groups.size()),
         {.learning_rate = learning_rate, .beta1 = beta1, .beta2 = beta2, .eps = eps, .weight_decay = weight_decay}});
  }
  options.clip_norm = clip_norm;
  options.loss_scaling = scaling_of(scaling);
  const ClientTensors values = tensors_of(initial);
  const ClientGroups groups(group_of.begin(), group_of.end());
  const nb::gil_scoped_release released;
  new (self) Engine(tensors, groups, setup, std::move(options), communicator, values);
}

// The bytes at an address that the engine gave out: no copy. They keep the engine alive.
nb::ndarray<std::uint8_t, nb::array_api, nb::ndim<1>, nb::device::cpu> memory(const nb::object& self,
                                                                              std::uintptr_t address,
                                                                              std::size_t bytes) {
  return {reinterpret_cast<std::uint8_t*>(address), {bytes}, self};
}

std::vector<std::pair<std::string, std::vector<std::string>>> units(const Engine& engine) {
  std::vector<std::pair<std::string, std::vector<std::string>>> result;
  for (const UnitNamesOfTensors& unit : engine.units()) result.emplace_back(unit.name, unit.tensors);
  return result;
}

nb::dict step(Engine& engine) {
  const StepReport report = [&] {
    const nb::gil_scoped_release released;
    return engine.step();
  }();
  nb::dict result;
  result["step"] = report.step;
  result["skipped"] = report.skipped;
  result["norm"] = report.norm;
  result["clip_factor"] = report.clip_factor;
  result["loss_scale"] = report.loss_scale;
  result["sent_bytes"] = report.sent.count();
  result["communication_seconds"] = report.communication_seconds;
  result["update_seconds"] = report.update_seconds;
  return result;
}

void read_state(Engine& engine, int kind, const Addressed& into) {
  const ClientTensors tensors = tensors_of(into);
  const nb::gil_scoped_release released;
  engine.read_state(static_cast<StateKind>(kind), tensors);
}

void write_state(Engine& engine, std::uint64_t steps_applied, double loss_scale, std::uint64_t clean_steps,
                 const std::vector<Addressed>& from) {
  std::map<StateKind, ClientTensors> kinds;
  for (std::size_t kind = 0; kind < from.size(); ++kind) {
    kinds[static_cast<StateKind>(kind)] = tensors_of(from[kind]);
  }
  const nb::gil_scoped_release released;
  StepState step_state = engine.optimizer().step_state();
  step_state.steps_applied = steps_applied;
  step_state.loss_scale = loss_scale;
  step_state.clean_steps = clean_steps;
  engine.write_state(step_state, kinds);
}

// The name; nothing of a save in the background, which has none yet.
std::optional<std::string> save(Engine& engine, const std::string& folder, const nb::bytes& client, std::uint64_t keep,
                                std::uint64_t memory_bytes, bool background) {
  const SaveOptions options{
      .client = {client.c_str(), client.size()}, .keep = keep, .memory = shardplan::Bytes{memory_bytes}};
  const nb::gil_scoped_release released;
  if (!background) return engine.save(folder, options);
  engine.save_in_background(folder, options);
  return std::nullopt;
}

// Name, the client's bytes, notes.
nb::tuple load(Engine& engine, const std::string& folder) {
  const LoadReport report = [&] {
    const nb::gil_scoped_release released;
    return engine.load(folder);
  }();
  return nb::make_tuple(report.name, nb::bytes(report.client.data(), report.client.size()), report.notes);
}

}  // namespace

void bind_engine(nb::module_& module) {
  using Released = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Engine>(module, "Engine")
      .def("__init__", construct, nb::arg("tensors"), nb::arg("words"), nb::arg("groups"), nb::arg("group_of"),
           nb::arg("clip_norm"), nb::arg("loss_scaling").none(), nb::arg("communicator"), nb::arg("initial"),
           nb::keep_alive<1, 8>())
      .def_prop_ro("units", units)
      .def_prop_ro("shards_parameters", &Engine::shards_parameters)
      .def_prop_ro("plan_hash", [](const Engine& engine) { return engine.plan().hash; })
      .def_prop_ro("arena_bytes", [](const Engine& engine) { return engine.plan().device.bytes.count(); })
      .def_prop_ro("steps_applied", [](Engine& engine) { return engine.optimizer().steps_applied(); })
      .def_prop_ro("loss_scale", [](Engine& engine) { return engine.optimizer().loss_scale(); })
      .def_prop_ro("clean_steps", [](Engine& engine) { return engine.optimizer().step_state().clean_steps; })
      .def("memory", memory, nb::arg("address"), nb::arg("bytes"))
      .def("resident_parameters", &Engine::resident_parameters, nb::arg("unit"))
      .def("begin", &Engine::begin, nb::arg("evaluate"), Released())
      .def(
          "enter_forward", [](Engine& engine, std::uint64_t unit) { return engine.enter(unit, Pass::forward); },
          nb::arg("unit"), Released())
      .def(
          "enter_backward", [](Engine& engine, std::uint64_t unit) { return engine.enter(unit, Pass::backward); },
          nb::arg("unit"), Released())
      .def("leave", &Engine::leave, nb::arg("unit"), Released())
      .def("pass_forward", &Engine::pass_forward, Released())
      .def(
          "contribute",
          [](Engine& engine, std::size_t tensor, std::uintptr_t address, const std::string& dtype) {
            engine.contribute(tensor, {address, dtype_of(dtype)});
          },
          nb::arg("tensor"), nb::arg("address"), nb::arg("dtype"), Released())
      .def(
          "set_hyperparameters",
          [](Engine& engine, std::size_t group, double learning_rate, double beta1, double beta2, double eps,
             double weight_decay) {
            engine.optimizer().set_hyperparameters(group, {.learning_rate = learning_rate,
                                                           .beta1 = beta1,
                                                           .beta2 = beta2,
                                                           .eps = eps,
                                                           .weight_decay = weight_decay});
          },
          nb::arg("group"), nb::arg("lr"), nb::arg("beta1"), nb::arg("beta2"), nb::arg("eps"), nb::arg("weight_decay"))
      .def("step", step)
      .def("read_state", read_state, nb::arg("kind"), nb::arg("into"))
      .def("save", save, nb::arg("folder"), nb::arg("client"), nb::arg("keep"), nb::arg("memory_bytes"),
           nb::arg("background"))
      .def("finish_save", &Engine::finish_save, nb::arg("wait"), Released())
      .def("load", load, nb::arg("folder"))
      .def("write_state", write_state, nb::arg("steps_applied"), nb::arg("loss_scale"), nb::arg("clean_steps"),
           nb::arg("from_"));
}

}  // namespace shardplan::python
