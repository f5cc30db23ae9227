#include <fmt/format.h>

#include <boost/json.hpp>
#include <cmath>
#include <utility>

#include "tools/memcalc/error_bar.h"
#include "tools/memcalc/json_parts.h"
#include "tools/memcalc/output.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

json::value value_of(const std::optional<Bytes>& bytes) {
  return bytes ? json::value(bytes->count()) : json::value();
}

template <typename T>
json::value value_of(const std::optional<T>& value) {
  return value ? json::value(*value) : json::value();
}

json::string word(std::string_view text) {
  return json::string(text.data(), text.size());
}

json::array words(const std::vector<std::string>& texts) {
  json::array array;
  for (const std::string& text : texts) array.emplace_back(text);
  return array;
}

}  // namespace

json::object model_json(const Catalog& catalog) {
  const std::uint64_t parameters = parameter_elements(catalog);
  return {{"name", catalog.name},
          {"family", catalog.family},
          {"parameters", parameters},
          {"trainable_parameters", trainable_elements(catalog)},
          {"active_parameters", catalog.active_parameters.value_or(parameters)},
          {"tensors", catalog.count_only ? json::value() : json::value(tensor_count(catalog))},
          {"units", catalog.count_only ? json::value() : json::value(unit_count(catalog))}};
}

json::object setup_json(const PlanOptions& options, const Planned& planned) {
  const Setup& setup = options.setup;
  const Policy& policy = setup.policy;
  const Parallelism& parallel = setup.parallel;
  const ClientSetup client = options.whole_client();
  const bool titan = client.profile == Profile::torchtitan;
  const auto dtype = [](DType type) { return word(name(type)); };
  return {
      {"world_size", total_ranks(setup)},
      {"gpus_per_node", options.node_gpus()},
      {"data_parallel", data_parallel(setup)},
      {"tensor_parallel", parallel.tensor},
      {"pipeline_parallel", parallel.pipeline},
      {"context_parallel", parallel.context},
      {"expert_parallel", parallel.expert},
      {"expert_tensor_parallel", resolved_expert_tensor(parallel)},
      {"expert_data_parallel", expert_world_size(setup)},
      {"replicate", setup.replicate},
      {"shard", shard_count(setup)},
      {"zero_stage", setup.stage},
      {"engine", word(name(options.engine))},
      {"precision", policy.name},
      {"compute_dtype", dtype(policy.compute)},
      {"param_dtype", dtype(policy.parameter)},
      {"grad_dtype", dtype(policy.gradient)},
      {"grad_accum_dtype", dtype(policy.gradient_accumulator)},
      {"master_dtype", policy.master ? json::value(dtype(*policy.master)) : json::value()},
      {"moment_dtype", dtype(policy.first_moment)},
      {"wire_dtype", dtype(wire_dtype_of(options))},
      {"optimizer", word(states_of(setup.optimizer).name)},
      {"adafactor_first_moment", setup.adafactor_first_moment},
      {"optimizer_in_backward", setup.optimizer_in_backward},
      {"ema", setup.ema},
      {"save_background", options.save_background},
      {"micro_batch", options.micro_batch},
      {"sequence", value_of(options.sequence)},
      {"images", options.client.images},
      {"image_size", options.client.image_height == 0
                         ? json::value()
                         : json::value{options.client.image_height, options.client.image_width}},
      {"grad_accum", setup.accumulation},
      {"cadence", word(name(cadence_of(planned.report.traffic, setup)))},
      {"reduction", word(name(setup.reduction))},
      {"reduction_group", resolved_reduction_group(setup)},
      {"transport", word(name(setup.transport))},
      {"prefetch", setup.prefetch},
      {"recompute", recompute_words(options.client.recompute, options.client.recompute_every)},
      {"gpu", planned.gpu ? json::value(planned.gpu->name) : json::value()},
      {"hpz", options.engine == Engine::deepspeed
                  ? json::value(options.engine_options.deepspeed.zero_hpz_partition_size)
                  : json::value()},
      {"mics", options.engine_options.deepspeed.mics_shard_size > 0
                   ? json::value(options.engine_options.deepspeed.mics_shard_size)
                   : json::value()},
      {"virtual_stages", parallel.virtual_stages},
      {"sequence_parallel", parallel.sequence_parallel},
      {"schedule", parallel.pipeline > 1 ? json::value(word(name(resolved_schedule(parallel)))) : json::value()},
      {"vocabulary_multiple", parallel.vocabulary_multiple},
      {"attention", word(name(resolved_attention(client)))},
      {"profile", word(name(client.profile))},
      {"loss", loss_words(client.loss, client.loss_chunks)},
      {"loss_parallel", titan && parallel.tensor > 1 ? json::value(client.loss_parallel) : json::value()},
      {"context_rotate_method",
       titan && parallel.context > 1 ? json::value(client.context_gathers ? "allgather" : "alltoall") : json::value()},
      {"moe_imbalance",
       std::isinf(client.expert_load.imbalance) ? json::value("worst") : json::value(client.expert_load.imbalance)},
      {"moe_capacity_factor", value_of(client.expert_load.capacity_factor)},
      {"offload", value_of(options.offload)},
      {"lora_rank", options.lora ? json::value(options.lora->rank) : json::value()},
      {"lora_targets", options.lora ? json::value(words(options.lora->targets)) : json::value()},
      {"lora_dtype", options.lora && options.lora->dtype ? word(name(*options.lora->dtype)) : json::value()},
      {"lora_dropout", options.client.adapter_dropout},
      {"modules_to_save", options.lora ? json::value(words(options.lora->modules_to_save)) : json::value()},
      {"quantize", options.quantize ? json::value(word(name(*options.quantize))) : json::value()},
      {"freeze", words(options.freeze)},
      {"plan_hash", planned.plan ? json::value(planned.plan->hash) : json::value()}};
}

json::object traffic_json(const Traffic& traffic) {
  return {{"bytes_sent_per_step", traffic.total().count()},
          {"by_operation",
           {{"gather_parameters", traffic.gather_parameters.count()},
            {"gather_gradients", traffic.gather_gradients.count()},
            {"reduce_gradients", traffic.reduce_gradients.count()},
            {"reduce_among_replicas", traffic.reduce_among_replicas.count()}}},
          {"control_bytes_sent_per_step", traffic.control.count()},
          {"textbook_bytes_sent_per_step", traffic.textbook.count()}};
}

json::object rank_json(const RankReport& rank) {
  const DeviceMemory& device = rank.device;
  const PeakMemory& peak = device.at_peak;
  const json::value peak_at = device.peak_at.empty() ? json::value() : json::value(device.peak_at);
  return {{"role", rank.role},
          {"count", rank.count},
          {"device",
           {{"parameters", device.parameters.count()},
            {"gradients", device.gradients.count()},
            {"optimizer_states", device.optimizer_states.count()},
            {"model_states", device.model_states().count()},
            {"allocated_after_step", value_of(device.allocated_after_step)},
            {"peak_allocated", value_of(device.peak_allocated)},
            {"peak_reserved", value_of(device.peak_reserved)},
            {"context", value_of(device.context)},
            {"total", value_of(device.total)},
            {"live_peak", value_of(device.live_peak)},
            {"peak_at", peak_at},
            {"at_peak",
             {{"parameters", value_of(peak.parameters)},
              {"gathered_parameters", value_of(peak.gathered_parameters)},
              {"gradients", value_of(peak.gradients)},
              {"optimizer_states", value_of(peak.optimizer_states)},
              {"communication_buffers", value_of(peak.communication_buffers)},
              {"activations", value_of(peak.activations)},
              {"loss", value_of(peak.loss)},
              {"workspace", value_of(peak.workspace)}}}}},
          {"host",
           {{"pinned", value_of(rank.host.pinned)},
            {"pageable", value_of(rank.host.pageable)},
            {"total", value_of(rank.host.total)},
            {"initialization_peak", value_of(rank.host.initialization_peak)}}},
          {"file", {{"total", value_of(rank.file)}}},
          {"arenas", rank.arenas ? json::value{{"device", rank.arenas->device.count()},
                                               {"pinned", rank.arenas->pinned.count()},
                                               {"host", rank.arenas->host.count()},
                                               {"file", rank.arenas->file.count()}}
                                 : json::value()}};
}

namespace {

// Of the worst rank.
json::object error_bar_json(const PlanOptions& options, const Planned& planned) {
  const DeviceMemory& device = planned.worst().device;
  json::object bars;
  for (const auto& [field, bytes] : {std::pair{ErrorField::allocated_after_step, device.allocated_after_step},
                                     {ErrorField::peak_allocated, device.peak_allocated}}) {
    const MeasuredErrors* errors = measured_errors(options.engine, options.whole_client().profile, field);
    json::value& value = bars[json::string_view(name(field).data(), name(field).size())];
    if (errors == nullptr || !bytes) continue;
    const ErrorBar bar = error_bar(*bytes, *errors);
    value = {{"low", bar.low.count()},
             {"high", bar.high.count()},
             {"rows", errors->rows},
             {"median_abs_percent", errors->median_abs_percent},
             {"p90_abs_percent", errors->p90_abs_percent},
             {"max_abs_percent", errors->max_abs_percent},
             {"source", fmt::format("docs/validation.md, {}", errors->file)}};
  }
  return bars;
}

std::string line_of(const json::object& object) {
  return json::serialize(object) + "\n";
}

}  // namespace

Beside beside_of(const PlanOptions& options, const Planned& planned) {
  Beside beside;
  if (options.against) beside.comparison = compare(options, planned, *options.against, read_against(options));
  if (options.calibrate) beside.calibration = calibrate(*options.calibrate, planned);
  return beside;
}

std::string plan_json(const PlanOptions& options, const Planned& planned, const Beside& beside) {
  json::array ranks;
  for (const RankReport& rank : planned.report.ranks) ranks.push_back(rank_json(rank));
  json::value gpu;
  json::value headroom;
  if (planned.gpu) {
    gpu = {{"name", planned.gpu->name}, {"capacity_bytes", planned.gpu->bytes.count()}};
    // What is left is only known once everything is counted; what is missing already is.
    if (planned.fits) headroom = signed_difference(planned.gpu->bytes, least_device_bytes(planned.worst()));
  }
  return line_of(
      {{"schema", "memcalc.plan/1"},
       {"model", model_json(planned.catalog)},
       {"setup", setup_json(options, planned)},
       {"ranks", std::move(ranks)},
       {"worst", rank_json(planned.worst())},
       {"communication", traffic_json(planned.report.traffic)},
       {"gpu", std::move(gpu)},
       {"fits", value_of(planned.fits)},
       {"headroom_bytes", std::move(headroom)},
       {"error_bar", error_bar_json(options, planned)},
       {"against",
        beside.comparison ? json::value(comparison_json(options, planned, *beside.comparison)) : json::value()},
       {"calibration", beside.calibration ? json::value(calibration_json(*beside.calibration)) : json::value()},
       {"notes", json::array(planned.report.notes.begin(), planned.report.notes.end())}});
}

}  // namespace shardplan::memcalc
