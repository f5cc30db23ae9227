#include "tools/memcalc/error_bar.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace shardplan::memcalc {
namespace {

// docs/validation.md, the table of files and fields.
constexpr std::array<MeasuredErrors, 2> kErrors{{
    {Engine::megatron, Profile::megatron, ErrorField::allocated_after_step, "megatron.json", 62, 0.42, 2.46, 14.22},
    {Engine::megatron, Profile::megatron, ErrorField::peak_allocated, "megatron.json", 62, 0.54, 2.41, 23.43},
}};

}  // namespace

std::string_view name(ErrorField field) {
  switch (field) {
    case ErrorField::allocated_after_step:
      return "allocated_after_step";
    case ErrorField::peak_allocated:
      return "peak_allocated";
  }
  SHARDPLAN_CHECK(false, "an unknown field");
  return {};
}

const MeasuredErrors* measured_errors(Engine engine, Profile profile, ErrorField field) {
  const auto* const found = std::find_if(kErrors.begin(), kErrors.end(), [&](const MeasuredErrors& errors) {
    return errors.engine == engine && errors.profile == profile && errors.field == field;
  });
  return found == kErrors.end() ? nullptr : found;
}

ErrorBar error_bar(Bytes planned, const MeasuredErrors& errors) {
  const auto bytes = static_cast<double>(planned.count());
  const double share = errors.p90_abs_percent / 100;
  return {Bytes{static_cast<std::uint64_t>(std::floor(bytes / (1 + share)))},
          Bytes{static_cast<std::uint64_t>(std::ceil(bytes / (1 - share)))}};
}

}  // namespace shardplan::memcalc
