#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "base/text.h"
#include "tools/memcalc/json_parts.h"
#include "tools/memcalc/output.h"
#include "tools/memcalc/text_parts.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

// Members of the two set-ups that differ.
struct ComparedSetting {
  std::string name;
  json::value here;
  json::value there;
};

std::vector<ComparedSetting> settings_of(const PlanOptions& options, const Planned& planned,
                                         const Comparison& comparison) {
  std::vector<ComparedSetting> settings;
  const json::object there = setup_json(comparison.options, comparison.planned);
  for (const auto& [key, value] : setup_json(options, planned)) {
    if (key != "plan_hash" && there.at(key) != value) settings.push_back({std::string(key), value, there.at(key)});
  }
  return settings;
}

template <typename T>
json::value value_of(const std::optional<T>& value) {
  return value ? json::value(*value) : json::value();
}

json::object bytes_json(const ComparedBytes& line) {
  json::object object{{"part", line.part},
                      {"name", line.name},
                      {"here", line.here ? json::value(line.here->count()) : json::value()},
                      {"there", line.there ? json::value(line.there->count()) : json::value()},
                      {"difference", nullptr}};
  if (line.here && line.there) object["difference"] = signed_difference(*line.there, *line.here);
  return object;
}

std::string words_of(const json::value& value) {
  if (value.is_double()) return fmt::format("{:g}", value.as_double());  // not as 1E0
  return value.is_string() ? std::string(value.as_string()) : json::serialize(value);
}

std::string signed_gb(Bytes from, Bytes to) {
  if (from == to) return "-";
  return to > from ? "+" + in_gb(to - from) : "-" + in_gb(from - to);
}

std::string cell(const std::optional<Bytes>& bytes) {
  return bytes ? in_gb(*bytes) : "not known";
}

const char* title_of(const std::string& part) {
  return part == "at_peak"    ? "at the peak"
         : part == "resident" ? "resident"
         : part == "device"   ? "on the device"
                              : "sent per GPU and step";
}

std::string lines_text(const Comparison& comparison) {
  std::string text;
  std::string part;
  for (const ComparedBytes& line : comparison.lines) {
    // What neither has needs no line.
    if (line.here.value_or(Bytes{}) == Bytes{} && line.there.value_or(Bytes{}) == Bytes{}) continue;
    if (line.part != part) text += fmt::format("  {}\n", title_of(line.part));
    part = line.part;
    std::string name = line.name;
    std::replace(name.begin(), name.end(), '_', ' ');
    text += fmt::format("    {:<24}{:>14}{:>14}{:>14}\n", name, cell(line.here), cell(line.there),
                        line.here && line.there ? signed_gb(*line.here, *line.there) : "");
  }
  return text;
}

}  // namespace

json::object comparison_json(const PlanOptions& options, const Planned& planned, const Comparison& comparison) {
  json::array settings;
  for (ComparedSetting& setting : settings_of(options, planned, comparison)) {
    settings.push_back({{"name", setting.name}, {"here", setting.here}, {"there", setting.there}});
  }
  json::array lines;
  for (const ComparedBytes& line : comparison.lines) lines.push_back(bytes_json(line));
  json::value difference;
  if (comparison.seconds_here && comparison.seconds_there) {
    difference = *comparison.seconds_there - *comparison.seconds_here;
  }
  return {{"flags", comparison.flags},
          {"setup", std::move(settings)},
          {"lines", std::move(lines)},
          {"peak_at", {{"here", planned.worst().device.peak_at}, {"there", comparison.planned.worst().device.peak_at}}},
          {"step_seconds",
           {{"here", value_of(comparison.seconds_here)},
            {"there", value_of(comparison.seconds_there)},
            {"difference", difference}}},
          {"fits", {{"here", value_of(planned.fits)}, {"there", value_of(comparison.planned.fits)}}},
          {"notes", json::array(comparison.notes.begin(), comparison.notes.end())}};
}

std::string comparison_text(const PlanOptions& options, const Planned& planned, const Comparison& comparison,
                            bool colour) {
  const Style style = style_for(colour);
  std::string text = fmt::format("\n{}Against {}{}\n  {}{:<26}{:>14}{:>14}{:>14}{}\n", style.bold, comparison.flags,
                                 style.off, style.dim, "", "here", "there", "difference", style.off);
  for (const ComparedSetting& setting : settings_of(options, planned, comparison)) {
    text += fmt::format("  {:<26}{:>14}{:>14}\n", setting.name, words_of(setting.here), words_of(setting.there));
  }
  text += lines_text(comparison);
  if (comparison.seconds_here && comparison.seconds_there) {
    text += fmt::format("  {:<26}{:>12.3f} s{:>12.3f} s{:>+12.3f} s\n", "a step, estimated", *comparison.seconds_here,
                        *comparison.seconds_there, *comparison.seconds_there - *comparison.seconds_here);
  }
  for (const std::string& note : comparison.notes) text += fmt::format("{}note: {}{}\n", style.dim, note, style.off);
  return text;
}

}  // namespace shardplan::memcalc
