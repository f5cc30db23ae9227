// What memcalc prints: JSON (docs/memcalc-json.md lists the fields) and text.
#pragma once

#include <optional>
#include <string>

#include "tools/memcalc/calibrating.h"
#include "tools/memcalc/comparing.h"
#include "tools/memcalc/explaining.h"
#include "tools/memcalc/fitting.h"
#include "tools/memcalc/options.h"
#include "tools/memcalc/planning.h"
#include "tools/memcalc/simulating.h"
#include "tools/memcalc/validating.h"

namespace shardplan::memcalc {

// What is shown with a plan where it was asked for.
struct Beside {
  std::optional<Comparison> comparison;    // --against
  std::optional<Calibration> calibration;  // --calibrate
};
// What the options ask for.
Beside beside_of(const PlanOptions& options, const Planned& planned);

// `colour`: whether stdout is a terminal.
std::string plan_text(const PlanOptions& options, const Planned& planned, const Beside& beside, bool colour);
std::string plan_json(const PlanOptions& options, const Planned& planned, const Beside& beside);

std::string comparison_text(const PlanOptions& options, const Planned& planned, const Comparison& comparison,
                            bool colour);
std::string calibration_text(const Calibration& calibration, bool colour);

std::string explain_text(const PlanOptions& options, const Explained& explained);
std::string explain_json(const PlanOptions& options, const Explained& explained);

std::string simulate_text(const Simulated& simulated);
std::string simulate_json(const Simulated& simulated);

std::string fit_text(const Fit& fit, const FitOptions& options, bool colour);
std::string fit_json(const Fit& fit, const FitOptions& options);

std::string validation_text(const Validation& validation);
std::string validation_json(const Validation& validation);

std::string models_text(const ListOptions& options);
std::string gpus_text(const ListOptions& options);

}  // namespace shardplan::memcalc
