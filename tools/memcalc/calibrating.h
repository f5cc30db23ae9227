// What was measured of a run, beside what is planned: which part differs. What --calibrate asks.
//
// A file is one of
//   a memory snapshot of PyTorch's (torch.cuda.memory._dump_snapshot), best taken between two steps with the history recorded
//   over one of them: what is held then, and at the highest point of the history (planner/formats/memory_snapshot.h)
//   JSON or YAML, a map of numbers of bytes or sizes ("71.5GiB"), any of:
//     allocated_after_step  torch.cuda.memory_allocated between two steps
//     peak_allocated        torch.cuda.max_memory_allocated
//     peak_reserved         torch.cuda.max_memory_reserved
//     total                 what nvidia-smi shows
//     parameters, gradients, optimizer_states    what is known of the first
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/formats/memory_snapshot.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

struct Measurements {
  std::optional<Bytes> parameters;
  std::optional<Bytes> gradients;
  std::optional<Bytes> optimizer_states;
  std::optional<Bytes> allocated_after_step;
  std::optional<Bytes> peak_allocated;
  std::optional<Bytes> peak_reserved;
  std::optional<Bytes> total;
  std::optional<MemorySnapshot> snapshot;  // where the file was one
};

// Throws ConfigError and IoError.
Measurements read_measurements(const std::string& path);

// One part of a GPU's memory. Both are differences of two totals, so a total below the one before it shows as less than nothing.
struct CalibratedPart {
  std::string name;  // "allocator slack"; where totals between are not known, several: "allocator slack, context"
  std::int64_t measured = 0;
  std::int64_t planned = 0;
  std::int64_t difference() const { return measured - planned; }
};

struct Calibration {
  std::string file;
  Measurements measured;
  std::vector<CalibratedPart> parts;  // they add up to the largest total that both know
  std::size_t largest = 0;            // the part whose difference is largest
};

// Throws ConfigError where the file measures nothing that the plan knows.
Calibration calibrate(const std::string& path, const Planned& planned);

}  // namespace shardplan::memcalc
