#include <fmt/format.h>
#include <fmt/ranges.h>

#include <boost/json.hpp>
#include <map>
#include <utility>
#include <vector>

#include "base/text.h"
#include "tools/memcalc/output.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

std::string gib(double bytes) {
  return in_gib(Bytes{static_cast<std::uint64_t>(bytes)});
}

json::object summary_json(const ValidationSummary& summary) {
  return {{"rows", summary.rows},
          {"median_abs_percent", summary.median_abs_percent},
          {"p90_abs_percent", summary.p90_abs_percent},
          {"max_abs_percent", summary.max_abs_percent}};
}

}  // namespace

// Markdown: docs/validation.md is this.
std::string validation_text(const Validation& validation) {
  std::string text = "| file, field | rows | median | 90th percentile | worst |\n|---|---|---|---|---|\n";
  for (const auto& [file, summary] : validation.summary) {
    for (const auto& [field, part] : summary.fields) {
      text += fmt::format("| {}, {} | {} | {:.2f} % | {:.2f} % | {:.2f} % |\n", file, field, part.rows,
                          part.median_abs_percent, part.p90_abs_percent, part.max_abs_percent);
    }
  }
  text += "\n| row | field | measured | predicted | error | another planner's |\n|---|---|---|---|---|---|\n";
  for (const ValidatedRow& row : validation.rows) {
    text += fmt::format("| {} | {} | {} | {} | {:+.2f} % | {} |\n", row.id, row.field, gib(row.measured),
                        gib(row.predicted), row.error_percent(),
                        row.peer ? fmt::format("{:+.2f} %", 100 * (*row.peer - row.measured) / row.measured) : "");
  }
  if (validation.skipped.empty()) return text;
  text += fmt::format("\n{} rows are not predicted:\n\n", with_commas(validation.skipped.size()));
  std::map<std::pair<std::string, std::string>, std::vector<std::string>> reasons;  // by file and reason
  for (const SkippedRow& row : validation.skipped) reasons[{row.file, row.why}].push_back(row.id);
  for (const auto& [reason, ids] : reasons) {
    const bool many = ids.size() > 6;
    text += fmt::format("* {}, {}: {}\n", reason.first, reason.second,
                        many ? fmt::format("{} rows", ids.size()) : fmt::format("{}", fmt::join(ids, ", ")));
  }
  return text;
}

std::string validation_json(const Validation& validation) {
  json::array rows;
  for (const ValidatedRow& row : validation.rows) {
    rows.push_back({{"id", row.id},
                    {"file", row.file},
                    {"field", row.field},
                    {"measured", row.measured},
                    {"predicted", row.predicted},
                    {"error_percent", row.error_percent()},
                    {"peer", row.peer ? json::value(*row.peer) : json::value()},
                    {"peer_error_percent",
                     row.peer ? json::value(100 * (*row.peer - row.measured) / row.measured) : json::value()}});
  }
  json::array skipped;
  for (const SkippedRow& row : validation.skipped) {
    skipped.push_back({{"id", row.id}, {"file", row.file}, {"why", row.why}});
  }
  json::object summary;
  for (const auto& [file, of_file] : validation.summary) {
    json::object fields;
    for (const auto& [field, part] : of_file.fields) fields[field] = summary_json(part);
    json::object whole = summary_json(of_file.all);
    whole["fields"] = std::move(fields);
    summary[file] = std::move(whole);
  }
  return json::serialize(json::object{
             {"rows", std::move(rows)}, {"skipped", std::move(skipped)}, {"summary", std::move(summary)}}) +
         "\n";
}

}  // namespace shardplan::memcalc
