// validate: what the planner says of runs that somebody measured, beside what they measured.
//
// A file is a JSON array of rows. Known are
//   a Megatron-LM run   "id", "args", "env" and "gpu" as of --megatron-args; "allocated_bytes_end" and
//                       "peak_allocated_bytes" of a rank of the last pipeline stage; "world_size", "tp", "pp", "cp", "dp"
//                       where the run's last mesh is another than its arguments'
//   a run of SimuMax's  "model", "config" with "case", "parallel", "seq", "cp", "micro_batch_num"; "quantity" peak allocated,
//                       "measured" and "predicted" (SimuMax's own) in GiB, of the fullest rank
// Every other row is skipped, with the reason.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

struct ValidatedRow {
  std::string file;  // its last name
  std::string id;
  std::string field;    // "allocated_after_step", "peak_allocated"
  double measured = 0;  // bytes
  double predicted = 0;
  std::optional<double> peer;  // another planner's prediction

  double error_percent() const { return 100 * (predicted - measured) / measured; }
};

struct SkippedRow {
  std::string file;
  std::string id;
  std::string why;
};

struct ValidationSummary {
  std::uint64_t rows = 0;
  double median_abs_percent = 0;
  double p90_abs_percent = 0;
  double max_abs_percent = 0;
};

// Of one file: over all of its rows, and by field.
struct FileSummary {
  ValidationSummary all;
  std::map<std::string, ValidationSummary> fields;
};

struct Validation {
  std::vector<ValidatedRow> rows;
  std::vector<SkippedRow> skipped;
  std::map<std::string, FileSummary> summary;  // by file
};

// Reads the files, and those with the ending .json in folders. Throws ConfigError and IoError.
Validation make_validation(const ValidateOptions& options);

}  // namespace shardplan::memcalc
