#include <fmt/format.h>

#include <boost/json.hpp>
#include <cmath>

#include "tools/memcalc/json_parts.h"
#include "tools/memcalc/output.h"
#include "tools/memcalc/text_parts.h"

namespace shardplan::memcalc {
namespace {

namespace json = boost::json;

json::value value_of(const std::optional<Bytes>& bytes) {
  return bytes ? json::value(bytes->count()) : json::value();
}

json::object blocks_json(const BlocksHeld& held) {
  json::object object;
  for (std::size_t i = 0; i < kBlockOrigins; ++i) {
    const std::string_view origin = name(static_cast<BlockOrigin>(i));
    object[json::string_view(origin.data(), origin.size())] = held.by_origin[i].count();
  }
  return object;
}

json::value snapshot_json(const std::optional<MemorySnapshot>& snapshot) {
  if (!snapshot) return {};
  return {{"held", blocks_json(snapshot->held)},
          {"requested", snapshot->requested.count()},
          {"reserved", snapshot->reserved.count()},
          {"has_trace", snapshot->has_trace},
          {"at_peak", snapshot->has_trace ? json::value(blocks_json(snapshot->at_peak)) : json::value()}};
}

std::string gb(std::int64_t bytes) {
  return fmt::format("{}{}", bytes < 0 ? "-" : "", in_gb(Bytes{static_cast<std::uint64_t>(std::abs(bytes))}));
}

std::string origins_text(const char* when, const BlocksHeld& held) {
  std::string text;
  for (std::size_t i = 0; i < kBlockOrigins; ++i) {
    if (held.by_origin[i] == Bytes{}) continue;
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : ", ", name(static_cast<BlockOrigin>(i)), in_gb(held.by_origin[i]));
  }
  return fmt::format("  the snapshot's frames, {}: {}\n", when, text.empty() ? "nothing held" : text);
}

}  // namespace

json::object calibration_json(const Calibration& calibration) {
  const Measurements& measured = calibration.measured;
  json::array parts;
  for (const CalibratedPart& part : calibration.parts) {
    parts.push_back({{"name", part.name},
                     {"measured", part.measured},
                     {"planned", part.planned},
                     {"difference", part.difference()}});
  }
  return {{"file", calibration.file},
          {"measured",
           {{"parameters", value_of(measured.parameters)},
            {"gradients", value_of(measured.gradients)},
            {"optimizer_states", value_of(measured.optimizer_states)},
            {"allocated_after_step", value_of(measured.allocated_after_step)},
            {"peak_allocated", value_of(measured.peak_allocated)},
            {"peak_reserved", value_of(measured.peak_reserved)},
            {"total", value_of(measured.total)}}},
          {"snapshot", snapshot_json(measured.snapshot)},
          {"parts", std::move(parts)},
          {"largest", calibration.parts[calibration.largest].name}};
}

std::string calibration_text(const Calibration& calibration, bool colour) {
  const Style style = style_for(colour);
  std::string text = fmt::format("\n{}Measured: {}{}\n  {}{:<58}{:>14}{:>14}{:>14}{}\n", style.bold, calibration.file,
                                 style.off, style.dim, "", "measured", "planned", "difference", style.off);
  for (const CalibratedPart& part : calibration.parts) {
    text += fmt::format("  {:<58}{:>14}{:>14}{:>14}\n", part.name, gb(part.measured), gb(part.planned),
                        gb(part.difference()));
  }
  const CalibratedPart& largest = calibration.parts[calibration.largest];
  text += largest.difference() == 0 ? "  Nothing differs.\n"
                                    : fmt::format("  What differs most: {} ({}{})\n", largest.name,
                                                  largest.difference() > 0 ? "+" : "", gb(largest.difference()));
  if (calibration.measured.snapshot) {
    text += origins_text("held", calibration.measured.snapshot->held);
    if (calibration.measured.snapshot->has_trace)
      text += origins_text("at the peak", calibration.measured.snapshot->at_peak);
  }
  return text;
}

}  // namespace shardplan::memcalc
