// Any bytes as Megatron-LM's arguments: a model that holds together, or an Error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "planner/formats/megatron_args.h"

namespace shardplan {

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer calls it by this name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const MegatronRun run = read_megatron_args({reinterpret_cast<const char*>(data), size}, "fuzz");
    SHARDPLAN_CHECK(run.config.engine && run.config.stage && run.config.precision, "no engine, stage or precision");
    SHARDPLAN_CHECK(parameter_elements(run.model.catalog) > 0, "a model without parameters");
    SHARDPLAN_CHECK(run.model.catalog.active_parameters.value_or(0) <= parameter_elements(run.model.catalog),
                    "more active parameters than there are");
    unit_ties(run.model.catalog);
  } catch (const Error&) {  // the answer to bad input
  }
  return 0;
}

}  // namespace shardplan
