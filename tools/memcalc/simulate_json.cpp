#include <algorithm>
#include <boost/json.hpp>

#include "tools/memcalc/json_parts.h"
#include "tools/memcalc/output.h"
#include "tools/simulate/fault_spec.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

json::value value_of(const std::optional<Bytes>& bytes) {
  return bytes ? json::value(bytes->count()) : json::value();
}

json::array errors_json(const Simulation& simulation) {
  json::array errors;
  for (std::size_t rank = 0; rank < simulation.ranks.size(); ++rank) {
    const SimulatedRank& result = simulation.ranks[rank];
    if (result.error.empty()) continue;
    errors.push_back({{"rank", rank}, {"seconds", result.outcome.seconds}, {"error", result.error}});
  }
  return errors;
}

// The least and the most of the ranks.
json::value range_json(const Simulation& simulation, Bytes SimulatedRank::* what) {
  const auto [least, most] = std::minmax_element(simulation.ranks.begin(), simulation.ranks.end(),
                                                 [&](const auto& a, const auto& b) { return a.*what < b.*what; });
  return {{"min", ((*least).*what).count()}, {"max", ((*most).*what).count()}};
}

json::value peak_allocated_json(const SimulatedStage& stage) {
  if (!stage.planned.worst().device.peak_allocated) return {};
  return range_json(stage.simulation, &SimulatedRank::peak_allocated);
}

json::object stage_json(const SimulatedStage& stage) {
  const Simulation& simulation = stage.simulation;
  const SimulatedRank& rank = slowest(simulation);
  const StepPlan& plan = *stage.planned.plan;
  const ArenaPlan& planned = plan.device;
  json::array faults;
  json::array happened;
  for (std::size_t i = 0; i < stage.faults.size(); ++i) {
    faults.push_back(json::string(describe(stage.faults[i])));
    happened.push_back(simulation.happened[i]);
  }
  json::array stragglers;
  for (const std::size_t straggler : stragglers_of(simulation)) stragglers.push_back(straggler);
  return {
      {"zero_stage", stage.planned.plan->setup.stage},
      {"ranks", simulation.ranks.size()},
      {"operations", simulation.operations},
      {"virtual_step_seconds", simulation.step_seconds},
      {"wall_seconds", simulation.wall_seconds},
      {"peak_bytes", range_json(simulation, &SimulatedRank::arena)},
      {"planned_peak_bytes", planned.bytes.count()},
      {"peak_at", stage.planned.worst().device.peak_at},
      {"live_peak_bytes", range_json(simulation, &SimulatedRank::live_peak)},
      {"planned_live_peak_bytes", planned.live_peak.count()},
      {"host_peak_bytes", range_json(simulation, &SimulatedRank::host_arena)},
      {"planned_host_peak_bytes", plan.pinned.bytes.count()},
      {"host_live_peak_bytes", range_json(simulation, &SimulatedRank::host_live_peak)},
      {"planned_host_live_peak_bytes", plan.pinned.live_peak.count()},
      {"file_peak_bytes", range_json(simulation, &SimulatedRank::file)},
      {"planned_file_peak_bytes", plan.file.bytes.count()},
      {"file_live_peak_bytes", range_json(simulation, &SimulatedRank::file_live)},
      {"planned_file_live_peak_bytes", plan.file.live_peak.count()},
      {"peak_allocated", peak_allocated_json(stage)},
      {"planned_peak_allocated", value_of(stage.planned.worst().device.peak_allocated)},
      {"bytes_sent_per_rank", rank.sent.count()},
      {"planned_bytes_sent_per_rank", stage.planned.report.traffic.total().count()},
      {"textbook_bytes_sent_per_rank", stage.planned.report.traffic.textbook.count()},
      {"bytes_sent_by_operation", traffic_json(stage.planned.report.traffic).at("by_operation")},
      {"bytes_sent_by_link", {{"node", simulation.sent.node.count()}, {"network", simulation.sent.network.count()}}},
      {"compute_seconds", rank.compute_seconds},
      {"exposed_communication_seconds", rank.exposed_seconds},
      {"waiting_seconds", rank.waiting_seconds},
      {"other_seconds", rank.other_seconds},
      {"communication_seconds", rank.communication_seconds},
      {"hidden_communication_seconds", rank.hidden_seconds()},
      {"stragglers", std::move(stragglers)},
      {"fits", stage.planned.fits ? json::value(*stage.planned.fits) : json::value()},
      {"faults", std::move(faults)},
      {"faults_happened", std::move(happened)},
      {"errors", errors_json(simulation)}};
}

}  // namespace

std::string simulate_json(const Simulated& simulated) {
  json::object object{{"schema", "memcalc.simulate/1"},
                      {"model", model_json(simulated.stages[0].planned.catalog)},
                      {"setup", setup_json(simulated.options, simulated.stages.back().planned)},
                      {"cluster",
                       {{"name", simulated.cluster.name},
                        {"gpu", simulated.cluster.gpu.name},
                        {"gpus_per_node", simulated.gpus_per_node},
                        {"node_bytes_per_second", simulated.cluster.node.bytes_per_second},
                        {"network_bytes_per_second", simulated.cluster.network.bytes_per_second},
                        {"host_bytes_per_second", simulated.cluster.host.bytes_per_second},
                        {"disk_read_bytes_per_second", simulated.cluster.disk.read_bytes_per_second},
                        {"disk_write_bytes_per_second", simulated.cluster.disk.write_bytes_per_second}}}};
  // With --compare-stages the fields are those of the last stage.
  for (auto& [key, value] : stage_json(simulated.stages.back())) object.emplace(key, value);
  if (simulated.stages.size() > 1) {
    json::array stages;
    for (const SimulatedStage& stage : simulated.stages) stages.push_back(stage_json(stage));
    object["stages"] = std::move(stages);
  }
  object["notes"] = json::array(simulated.notes.begin(), simulated.notes.end());
  return json::serialize(object) + "\n";
}

}  // namespace shardplan::memcalc
