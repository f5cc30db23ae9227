#include <fmt/format.h>

#include <boost/json.hpp>
#include <utility>

#include "shard/c_api/handles.h"
#include "shard/c_api/options.h"

namespace shardplan::c_api {
namespace {

namespace json = boost::json;

json::string text(std::string_view word) {
  return json::string(word.data(), word.size());
}

json::object setup_json(const Setup& setup) {
  const Policy& policy = setup.policy;
  return {{"world_size", setup.world_size},
          {"replicate", setup.replicate},
          {"zero_stage", setup.stage},
          {"prefetch", setup.prefetch},
          {"grad_accum", setup.accumulation},
          {"cadence", text(name(resolved_cadence(setup)))},
          {"recompute", text(name(setup.recompute))},
          {"transport", text(name(setup.transport))},
          {"reduction", text(name(setup.reduction))},
          {"reduction_group", resolved_reduction_group(setup)},
          {"precision", policy.name},
          {"compute_dtype", text(name(policy.compute))},
          {"param_dtype", text(name(policy.parameter))},
          {"grad_dtype", text(name(policy.gradient))},
          {"grad_accum_dtype", text(name(policy.gradient_accumulator))},
          {"master_dtype", policy.master ? json::value(text(name(*policy.master))) : json::value()},
          {"moment_dtype", text(name(policy.first_moment))},
          {"wire_dtype", text(name(policy.wire))},
          {"optimizer", text(states_of(setup.optimizer).name)},
          {"ema", setup.ema}};
}

std::uint64_t count(const std::optional<Bytes>& bytes) {
  return bytes.value_or(Bytes{}).count();
}

shardplan_plan_facts facts_of(const PlanState& state) {
  const DeviceMemory& device = state.report.ranks[state.report.worst].device;
  const PeakMemory& peak = device.at_peak;
  shardplan_plan_facts facts{.struct_size = sizeof facts,
                             .hash = {},
                             .units = state.plan.layout.units,
                             .tensors = tensor_count(state.catalog),
                             .parameter_elements = parameter_elements(state.catalog),
                             .trainable_elements = trainable_elements(state.catalog),
                             .parameter_bytes = device.parameters.count(),
                             .gradient_bytes = device.gradients.count(),
                             .optimizer_state_bytes = device.optimizer_states.count(),
                             .peak_bytes = state.plan.device.live_peak.count(),
                             .peak_parameter_bytes = count(peak.parameters),
                             .peak_gathered_parameter_bytes = count(peak.gathered_parameters),
                             .peak_gradient_bytes = count(peak.gradients),
                             .peak_optimizer_state_bytes = count(peak.optimizer_states),
                             .peak_communication_bytes = count(peak.communication_buffers),
                             .arena_bytes = state.plan.device.bytes.count(),
                             .sent_bytes_per_step = state.report.traffic.total().count()};
  SHARDPLAN_CHECK(state.plan.hash.size() < sizeof facts.hash, "the plan's hash is too long");
  state.plan.hash.copy(facts.hash, sizeof facts.hash - 1);
  return facts;
}

std::shared_ptr<const PlanState> make_plan(Catalog catalog, const char* options_text) {
  Options options = parse_options(options_text == nullptr ? "{}" : options_text);
  for (const std::string& glob : options.freeze) {
    if (freeze(catalog, glob) == 0) {
      throw ConfigError("options", "freeze", fmt::format("'{}' matches no tensor of {}", glob, catalog.name));
    }
  }
  auto state = std::make_shared<PlanState>();
  state->catalog = std::move(catalog);
  state->plan = make_step_plan(state->catalog, options.setup);
  state->options = std::move(options.optimizer);
  state->report = report_shardplan(state->catalog, state->plan);
  state->json = report_json(*state);
  return state;
}

}  // namespace

std::string report_json(const PlanState& state) {
  const shardplan_plan_facts facts = facts_of(state);
  const Traffic& traffic = state.report.traffic;
  const json::object report{{"schema", "shardplan.plan/1"},
                            {"hash", state.plan.hash},
                            {"model",
                             {{"name", state.catalog.name},
                              {"family", state.catalog.family},
                              {"parameters", facts.parameter_elements},
                              {"trainable_parameters", facts.trainable_elements},
                              {"tensors", facts.tensors},
                              {"units", facts.units}}},
                            {"setup", setup_json(state.plan.setup)},
                            {"resident_bytes",
                             {{"parameters", facts.parameter_bytes},
                              {"gradients", facts.gradient_bytes},
                              {"optimizer_states", facts.optimizer_state_bytes}}},
                            {"peak_at", state.report.ranks[state.report.worst].device.peak_at},
                            {"peak_bytes", facts.peak_bytes},
                            {"at_peak_bytes",
                             {{"parameters", facts.peak_parameter_bytes},
                              {"gathered_parameters", facts.peak_gathered_parameter_bytes},
                              {"gradients", facts.peak_gradient_bytes},
                              {"optimizer_states", facts.peak_optimizer_state_bytes},
                              {"communication_buffers", facts.peak_communication_bytes}}},
                            {"arena_bytes", facts.arena_bytes},
                            {"sent_bytes_per_step", facts.sent_bytes_per_step},
                            {"sent_bytes_by_operation",
                             {{"gather_parameters", traffic.gather_parameters.count()},
                              {"gather_gradients", traffic.gather_gradients.count()},
                              {"reduce_gradients", traffic.reduce_gradients.count()},
                              {"reduce_among_replicas", traffic.reduce_among_replicas.count()}}},
                            {"notes", json::array(state.report.notes.begin(), state.report.notes.end())}};
  return json::serialize(report);
}

}  // namespace shardplan::c_api

extern "C" {

using namespace shardplan::c_api;  // NOLINT(google-build-using-namespace): the functions below have C's names

shardplan_status shardplan_plan_create(const shardplan_catalog* catalog, const char* options, shardplan_plan** plan,
                                       shardplan_error* error) {
  return guarded(error, [&] {
    required(plan, "plan") = nullptr;
    *plan = new shardplan_plan{make_plan(required(catalog, "catalog").catalog, options)};
  });
}

void shardplan_plan_free(shardplan_plan* plan) {
  delete plan;
}

shardplan_status shardplan_plan_get_facts(const shardplan_plan* plan, shardplan_plan_facts* facts,
                                          shardplan_error* error) {
  return guarded(error, [&] { give(facts, facts_of(*required(plan, "plan").state), "facts"); });
}

shardplan_status shardplan_plan_get_report(const shardplan_plan* plan, const char** json, shardplan_error* error) {
  return guarded(error, [&] { required(json, "json") = required(plan, "plan").state->json.c_str(); });
}

}  // extern "C"
