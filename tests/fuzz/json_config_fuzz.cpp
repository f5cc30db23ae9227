// Any bytes as a config.json: a model that holds together, or an Error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "planner/formats/hf_config.h"

namespace shardplan {
namespace {

void check(const Model& model) {
  SHARDPLAN_CHECK(!model.catalog.runs.empty(), "a model without units");
  SHARDPLAN_CHECK(parameter_elements(model.catalog) > 0, "a model without parameters");
  SHARDPLAN_CHECK(trainable_elements(model.catalog) <= parameter_elements(model.catalog), "more trained than there is");
  SHARDPLAN_CHECK(model.catalog.active_parameters.value_or(0) <= parameter_elements(model.catalog),
                  "a token uses more than there is");
  unit_ties(model.catalog);
  const Architecture& a = model.architecture;
  SHARDPLAN_CHECK(a.kv_heads == 0 || a.heads % a.kv_heads == 0, "heads that do not divide");
  for (const UnitRun& run : model.catalog.runs) {
    SHARDPLAN_CHECK(run.count > 0 && !run.tensors.empty(), "an empty run");
    for (const Tensor& tensor : run.tensors) {
      SHARDPLAN_CHECK(!tensor.name.empty(), "a tensor without a name");
    }
  }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer calls it by this name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(model_from_hf_config({reinterpret_cast<const char*>(data), size}, "fuzz"));
  } catch (const Error&) {  // the answer to bad input
  }
  return 0;
}

}  // namespace shardplan
