#include "tools/memcalc/calibrating.h"

#include <fmt/format.h>

#include <cstdlib>
#include <tuple>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "planner/formats/file.h"
#include "planner/formats/yaml.h"

namespace shardplan::memcalc {
namespace {

constexpr std::uint64_t kMostSnapshotBytes = std::uint64_t{1} << 30;

struct Measurement {
  const char* name;
  std::optional<Bytes> Measurements::* member;
};
constexpr Measurement kMeasurements[] = {{"parameters", &Measurements::parameters},
                                         {"gradients", &Measurements::gradients},
                                         {"optimizer_states", &Measurements::optimizer_states},
                                         {"allocated_after_step", &Measurements::allocated_after_step},
                                         {"peak_allocated", &Measurements::peak_allocated},
                                         {"peak_reserved", &Measurements::peak_reserved},
                                         {"total", &Measurements::total}};

Bytes bytes_of(const JsonView& value) {
  if (!value.is_string()) return Bytes{value.as_count()};
  try {
    return parse_bytes(std::string(value.as_string()));
  } catch (const ConfigError& error) {
    value.fail(error.problem());
  }
}

Measurements measurements_of(const JsonView& root) {
  Measurements measured;
  if (!root.is_object()) root.fail_expected("a map of measured numbers, or a memory snapshot of PyTorch's");
  for (const JsonView member : root.members()) {
    std::string known;
    bool taken = false;
    for (const auto& [name, place] : kMeasurements) {
      known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
      if (member.key() != name) continue;
      measured.*place = bytes_of(member);
      taken = true;
    }
    if (!taken) member.fail(fmt::format("is not known: expected {}", known));
  }
  return measured;
}

// What a snapshot's frames name of what is held between steps; what they do not name may be of any class.
Measurements measurements_of(MemorySnapshot snapshot) {
  Measurements measured;
  measured.allocated_after_step = snapshot.held.sum();
  if (snapshot.has_trace) measured.peak_allocated = snapshot.at_peak.sum();
  measured.peak_reserved = snapshot.peak_reserved;
  measured.snapshot = snapshot;
  return measured;
}

// A total of a GPU's memory, of which the one before is a part.
struct Level {
  const char* part;  // what it adds
  std::optional<std::uint64_t> measured;
  std::optional<std::uint64_t> planned;
};

std::optional<std::uint64_t> count(const std::optional<Bytes>& bytes) {
  return bytes ? std::optional(bytes->count()) : std::nullopt;
}

std::vector<Level> levels_of(const Measurements& measured, const DeviceMemory& planned) {
  std::vector<Level> levels;
  // Classes add up: each is a level where all before it are known.
  std::uint64_t sum_measured = 0;
  std::uint64_t sum_planned = 0;
  bool all = true;
  for (const auto& [part, of_run, of_plan] :
       {std::tuple{"weights", measured.parameters, planned.parameters},
        {"gradients", measured.gradients, planned.gradients},
        {"optimizer states", measured.optimizer_states, planned.optimizer_states}}) {
    all = all && of_run.has_value();
    sum_measured = checked_add(sum_measured, of_run.value_or(Bytes{}).count());
    sum_planned = checked_add(sum_planned, of_plan.count());
    levels.push_back({part, all ? std::optional(sum_measured) : std::nullopt, sum_planned});
  }
  levels.push_back(
      {"what else stays between steps", count(measured.allocated_after_step), count(planned.allocated_after_step)});
  levels.push_back(
      {"activations and buffers of a step", count(measured.peak_allocated), count(planned.peak_allocated)});
  levels.push_back({"allocator slack", count(measured.peak_reserved), count(planned.peak_reserved)});
  levels.push_back({"context", count(measured.total), count(planned.total)});
  return levels;
}

std::vector<CalibratedPart> parts_of(const std::vector<Level>& levels) {
  std::vector<CalibratedPart> parts;
  std::uint64_t measured = 0;
  std::uint64_t planned = 0;
  std::string name;
  for (const Level& level : levels) {
    name += fmt::format("{}{}", name.empty() ? "" : ", ", level.part);
    if (!level.measured || !level.planned) continue;
    parts.push_back({std::exchange(name, {}), signed_difference(Bytes{*level.measured}, Bytes{measured}),
                     signed_difference(Bytes{*level.planned}, Bytes{planned})});
    measured = *level.measured;
    planned = *level.planned;
  }
  return parts;
}

}  // namespace

Measurements read_measurements(const std::string& path) {
  constexpr char kProto = '\x80';  // how a pickle begins; no text does
  if (read_beginning(path, 1) == std::string(1, kProto)) {
    if (file_bytes(path) > kMostSnapshotBytes) throw ConfigError(path, "", "a snapshot of more than 1 GiB");
    const std::string bytes = read_beginning(path, kMostSnapshotBytes);
    return measurements_of(read_memory_snapshot(bytes, path));
  }
  const JsonDocument document = json_from_json_or_yaml(read_text(path), path);
  return measurements_of(document.root());
}

Calibration calibrate(const std::string& path, const Planned& planned) {
  Calibration calibration{.file = path, .measured = read_measurements(path), .parts = {}};
  calibration.parts = parts_of(levels_of(calibration.measured, planned.worst().device));
  if (calibration.parts.empty()) {
    throw ConfigError(path, "", "measures nothing that this plan knows (activations need --seq)");
  }
  for (std::size_t i = 0; i < calibration.parts.size(); ++i) {
    const auto off = [&](std::size_t part) { return std::abs(calibration.parts[part].difference()); };
    if (off(i) > off(calibration.largest)) calibration.largest = i;
  }
  return calibration;
}

}  // namespace shardplan::memcalc
