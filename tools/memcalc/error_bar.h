// How far plans of one engine and one client's code were from runs that were measured: an error bar for the next one.
//
// Not an estimate: the share of nine in ten of the rows that memcalc validate compares (docs/validation.md), which were
// measured by others and fitted by nobody. Where no such row is of an engine and a profile there is no bar.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "planner/activations/client.h"
#include "planner/report.h"

namespace shardplan::memcalc {

enum class ErrorField : std::uint8_t { allocated_after_step, peak_allocated };
std::string_view name(ErrorField field);

// Of all rows of one file: absolute errors in percent of what was measured.
struct MeasuredErrors {
  Engine engine;
  Profile profile;
  ErrorField field;
  std::string_view file;  // of those that docs/validation.md has
  std::uint64_t rows = 0;
  double median_abs_percent = 0;
  double p90_abs_percent = 0;
  double max_abs_percent = 0;
};

// The rows that are known, as memcalc validate prints them: a golden test holds them to each other.
const MeasuredErrors* measured_errors(Engine engine, Profile profile, ErrorField field);

// What a run may measure where a plan says `planned`: error = (planned - measured) / measured, so measured = planned / (1 +- p90).
struct ErrorBar {
  Bytes low;
  Bytes high;
};
ErrorBar error_bar(Bytes planned, const MeasuredErrors& errors);

}  // namespace shardplan::memcalc
