#include <boost/json.hpp>

#include "planner/explain.h"
#include "tools/memcalc/json_parts.h"
#include "tools/memcalc/output.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

json::array explanation_json(const std::vector<Explanation>& lines) {
  json::array array;
  for (const Explanation& line : lines) {
    array.push_back({{"name", line.name},
                     {"bytes", line.bytes.count()},
                     {"formula", line.formula},
                     {"inputs", line.inputs},
                     {"source", line.source}});
  }
  return array;
}

json::string word(std::string_view text) {
  return json::string(text.data(), text.size());
}

json::array shape_json(const Shape& shape) {
  json::array sizes;
  for (const std::uint64_t size : shape) sizes.emplace_back(size);
  return sizes;
}

json::object saved_json(const SavedByUnit& unit) {
  json::array tensors;
  for (const SavedTensor& tensor : unit.tensors) {
    tensors.push_back({{"module", tensor.module},
                       {"operation", tensor.operation},
                       {"shape", shape_json(tensor.shape)},
                       {"dtype", word(name(tensor.dtype))},
                       {"bytes", tensor.bytes.count()},
                       {"kept_by", json::array(tensor.kept_by.begin(), tensor.kept_by.end())}});
  }
  return {{"unit", unit.unit}, {"times", unit.times}, {"bytes", unit.bytes.count()}, {"tensors", std::move(tensors)}};
}

json::array live_json(const std::vector<LiveTensors>& live) {
  json::array array;
  for (const LiveTensors& tensor : live) {
    array.push_back({{"unit", tensor.unit},
                     {"count", tensor.count},
                     {"module", tensor.module},
                     {"operation", tensor.operation},
                     {"purpose", word(autograd::name(tensor.purpose))},
                     {"shape", shape_json(tensor.shape)},
                     {"dtype", word(name(tensor.dtype))},
                     {"bytes_each", tensor.bytes.count()},
                     {"bytes", (tensor.count * tensor.bytes).count()}});
  }
  return array;
}

json::value client_json(const std::optional<ExplainedClient>& client) {
  if (!client) return {};
  json::array chunks;
  for (const ExplainedClient::Chunk& chunk : client->chunks) {
    json::array units;
    for (const SavedByUnit& unit : chunk.saved) units.push_back(saved_json(unit));
    chunks.push_back({{"micro_batches", chunk.micro_batches}, {"saved", std::move(units)}});
  }
  json::array resident;
  for (const ClientTerm& term : client->resident) {
    resident.push_back({{"name", term.name},
                        {"purpose", word(autograd::name(term.purpose))},
                        {"bytes", term.bytes.count()},
                        {"source", term.source}});
  }
  return {{"peak_at", client->peak_at},
          {"chunks", std::move(chunks)},
          {"live_at_peak", live_json(client->live)},
          {"resident", std::move(resident)},
          {"source", client->source}};
}

}  // namespace

std::string explain_json(const PlanOptions& options, const Explained& explained) {
  const Planned& planned = explained.planned;
  const json::object object{
      {"schema", "memcalc.explain/1"},
      {"model", model_json(planned.catalog)},
      {"setup", setup_json(options, planned)},
      {"device", explanation_json(explain_device(options, planned))},
      {"communication", explanation_json(explain_traffic(planned.held, options.setup, planned.report))},
      {"client", client_json(explained.client)}};
  return json::serialize(object) + "\n";
}

}  // namespace shardplan::memcalc
