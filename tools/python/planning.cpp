#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "tools/memcalc/output.h"
#include "tools/memcalc/planning.h"
#include "tools/memcalc/simulating.h"
#include "tools/python/bindings.h"
#include "tools/python/keywords.h"

namespace shardplan::python {
namespace {

std::string plan(const nb::dict& given) {
  const memcalc::PlanOptions options = plan_options(given);
  const nb::gil_scoped_release released;
  return memcalc::plan_json(options, memcalc::make_planned(options));
}

std::string explain(const nb::dict& given) {
  const memcalc::PlanOptions options = plan_options(given);
  const nb::gil_scoped_release released;
  return memcalc::explain_json(options, memcalc::make_planned(options));
}

std::string simulate(const nb::dict& given) {
  const memcalc::PlanOptions options = plan_options(given);
  const memcalc::SimulateOptions simulate = simulate_options(given);
  const nb::gil_scoped_release released;
  const auto no_progress = [](const std::string&) {};
  return memcalc::simulate_json(options, memcalc::make_simulated(options, simulate, no_progress));
}

std::string models() {
  return memcalc::models_text({.json = true, .names = false, .gpu_files = {}});
}

std::string gpus(const std::vector<std::string>& files) {
  return memcalc::gpus_text({.json = true, .names = false, .gpu_files = files});
}

}  // namespace

void bind_planning(nb::module_& module) {
  module.def("plan", plan, nb::arg("given"));
  module.def("explain", explain, nb::arg("given"));
  module.def("simulate", simulate, nb::arg("given"));
  module.def("models", models);
  module.def("gpus", gpus, nb::arg("files"));
}

}  // namespace shardplan::python
