#include "tools/memcalc/planning.h"

#include <fmt/format.h>

#include "base/error.h"
#include "planner/formats/parameter_count.h"
#include "planner/formats/read_model.h"

namespace shardplan::memcalc {
namespace {

Catalog read_catalog(const PlanOptions& options) {
  Catalog catalog = options.parameters ? catalog_from_parameters(parse_parameter_count(*options.parameters))
                                       : find_model(options.model).catalog;
  for (const std::string& glob : options.freeze) {
    if (freeze(catalog, glob) == 0) {
      throw ConfigError("--freeze", "", fmt::format("'{}' matches no tensor of {}", glob, catalog.name));
    }
  }
  return catalog;
}

void add_notes(const PlanOptions& options, const Catalog& catalog, Report& report) {
  const Setup& setup = options.setup;
  if (catalog.stored_dtype && *catalog.stored_dtype != setup.policy.parameter) {
    report.notes.push_back(fmt::format("the model's file says {}; {} trains parameters in {}",
                                       name(*catalog.stored_dtype), setup.policy.name, name(setup.policy.parameter)));
  }
  if (setup.policy.compute != setup.policy.parameter) {
    report.notes.push_back(
        fmt::format("{}: copies of the weights in {} are made by the client's code and not yet counted",
                    setup.policy.name, name(setup.policy.compute)));
  }
  const std::uint64_t shards = shard_count(setup);
  if (setup.replicate > 1 && shards > options.node_gpus()) {
    report.notes.push_back(fmt::format("a shard group of {} GPUs spans nodes of {}: its gathers cross the network",
                                       shards, options.node_gpus()));
  }
}

Planned plan_and_report(const PlanOptions& options) {
  Planned planned;
  planned.catalog = read_catalog(options);
  if (options.gpu) planned.gpu = find_capacity(*options.gpu, options.gpu_files);
  if (options.engine == Engine::paper) {
    planned.report = report_paper(planned.catalog, options.setup);
  } else {
    planned.plan = make_step_plan(planned.catalog, options.setup);
    planned.report = report_shardplan(planned.catalog, *planned.plan);
  }
  add_notes(options, planned.catalog, planned.report);
  if (planned.gpu && least_device_bytes(planned.worst()) > planned.gpu->bytes) planned.fits = false;
  return planned;
}

}  // namespace

Planned make_planned(const PlanOptions& options) {
  try {
    return plan_and_report(options);
  } catch (const ArithmeticOverflow& error) {
    throw ConfigError(options.parameters ? "--params" : options.model, "",
                      fmt::format("is too large to be counted: {}", error.what()));
  }
}

}  // namespace shardplan::memcalc
