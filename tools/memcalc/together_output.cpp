#include <fmt/format.h>

#include <boost/json.hpp>

#include "base/text.h"
#include "planner/catalog.h"
#include "tools/memcalc/json_parts.h"
#include "tools/memcalc/together.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

std::string or_unknown(const std::optional<Bytes>& bytes) {
  return bytes ? in_gb(*bytes) : "not known";
}

std::string names_of(const PlannedTogether& together) {
  std::string names;
  for (const Planned& model : together.models)
    names += (names.empty() ? "" : " + ") + name_beside_others(model.catalog);
  return names;
}

json::object one_model(const PlanOptions& options, const Planned& planned) {
  json::array ranks;
  for (const RankReport& rank : planned.report.ranks) ranks.push_back(rank_json(rank));
  return {{"model", model_json(planned.catalog)},
          {"setup", setup_json(options, planned)},
          {"ranks", std::move(ranks)},
          {"worst", rank_json(planned.worst())},
          {"communication", traffic_json(planned.report.traffic)}};
}

}  // namespace

std::string together_json(const PlannedTogether& together) {
  json::array models;
  json::array ranks;
  std::uint64_t sent = 0;
  for (std::size_t i = 0; i < together.models.size(); ++i) {
    models.push_back(one_model(together.options[i], together.models[i]));
    sent += together.models[i].report.traffic.total().count();
  }
  for (const RankReport& rank : together.ranks) ranks.push_back(rank_json(rank));
  const RankReport& worst = together.ranks[together.worst];
  json::value gpu;
  json::value headroom;
  if (together.gpu) {
    gpu = {{"name", together.gpu->name}, {"capacity_bytes", together.gpu->bytes.count()}};
    if (together.fits && worst.device.total) {
      headroom = signed_difference(together.gpu->bytes, *worst.device.total);
    }
  }
  return json::serialize(json::object{{"schema", "memcalc.plan/1"},
                                      {"models", std::move(models)},
                                      {"ranks", std::move(ranks)},
                                      {"worst", rank_json(worst)},
                                      {"communication", {{"bytes_sent_per_step", sent}}},
                                      {"gpu", std::move(gpu)},
                                      {"fits", together.fits ? json::value(*together.fits) : json::value()},
                                      {"headroom_bytes", std::move(headroom)},
                                      {"notes", json::array(together.notes.begin(), together.notes.end())}}) +
         "\n";
}

std::string together_text(const PlannedTogether& together, bool colour) {
  const char* bold = colour ? "\033[1m" : "";
  const char* dim = colour ? "\033[2m" : "";
  const char* off = colour ? "\033[0m" : "";
  std::string text = fmt::format("{}{}{} on the same GPUs\n\n", bold, names_of(together), off);
  text +=
      fmt::format("{}{:<36}{:>14}{:>14}{:>14}{}\n", dim, "each GPU", "parameters", "model states", "peak alone", off);
  for (const Planned& model : together.models) {
    const DeviceMemory& device = model.worst().device;
    text += fmt::format("{:<36}{:>14}{:>14}{:>14}\n", name_beside_others(model.catalog), in_gb(device.parameters),
                        in_gb(device.model_states()), or_unknown(device.peak_allocated));
  }
  const DeviceMemory& worst = together.ranks[together.worst].device;
  text += fmt::format("\n{:<36}{:>14}\n", "stays between steps", or_unknown(worst.allocated_after_step));
  text += fmt::format("{:<36}{:>14}   {}{}{}\n", "peak allocated", or_unknown(worst.peak_allocated), dim, worst.peak_at,
                      off);
  text += fmt::format("{:<36}{:>14}\n", "peak reserved", or_unknown(worst.peak_reserved));
  text += fmt::format("{:<36}{:>14}\n", "with the context", or_unknown(worst.total));
  if (together.gpu) {
    const char* verdict = !together.fits   ? "whether it fits is not known"
                          : *together.fits ? "It fits"
                                           : "It does not fit";
    text += fmt::format("\n{}{}{} on {} ({}).\n", bold, verdict, off, together.gpu->name, in_gb(together.gpu->bytes));
  }
  for (const std::string& note : together.notes) text += fmt::format("{}note: {}{}\n", dim, note, off);
  return text;
}

}  // namespace shardplan::memcalc
