#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "tools/memcalc/output.h"
#include "tools/memcalc/planning.h"
#include "tools/memcalc/simulating.h"
#include "tools/python/bindings.h"

namespace shardplan::python {
namespace {

using Words = std::vector<std::string>;  // of memcalc's command line, behind the command

memcalc::CommandLine command_line(const char* command, Words words) {
  words.insert(words.begin(), command);
  return memcalc::read_command_line(std::move(words));
}

std::string plan(Words words) {
  const memcalc::PlanOptions options = command_line("plan", std::move(words)).plan;
  const memcalc::Planned planned = memcalc::make_planned(options);
  return memcalc::plan_json(options, planned, memcalc::beside_of(options, planned));
}

std::string explain(Words words) {
  const memcalc::PlanOptions options = command_line("explain", std::move(words)).plan;
  return memcalc::explain_json(options, memcalc::make_explained(options));
}

std::string fit(Words words) {
  const memcalc::CommandLine line = command_line("fit", std::move(words));
  return memcalc::fit_json(memcalc::make_fit(line.plan, line.fit), line.fit);
}

std::string simulate(Words words) {
  const memcalc::CommandLine line = command_line("simulate", std::move(words));
  const auto no_progress = [](const std::string&) {};
  return memcalc::simulate_json(memcalc::make_simulated(line.plan, line.simulate, no_progress));
}

std::string models() {
  return memcalc::models_text({.json = true, .names = false, .gpu_files = {}});
}

std::string gpus(const std::vector<std::string>& files) {
  return memcalc::gpus_text({.json = true, .names = false, .gpu_files = files});
}

}  // namespace

void bind_planning(nb::module_& module) {
  using Released = nb::call_guard<nb::gil_scoped_release>;
  module.def("plan", plan, nb::arg("words"), Released());
  module.def("explain", explain, nb::arg("words"), Released());
  module.def("fit", fit, nb::arg("words"), Released());
  module.def("simulate", simulate, nb::arg("words"), Released());
  module.def("models", models);
  module.def("gpus", gpus, nb::arg("files"));
}

}  // namespace shardplan::python
