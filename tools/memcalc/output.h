// What memcalc prints: JSON (docs/memcalc-json.md lists the fields) and text.
#pragma once

#include <string>

#include "tools/memcalc/fitting.h"
#include "tools/memcalc/options.h"
#include "tools/memcalc/planning.h"
#include "tools/memcalc/simulating.h"
#include "tools/memcalc/validating.h"

namespace shardplan::memcalc {

// `colour`: whether stdout is a terminal.
std::string plan_text(const PlanOptions& options, const Planned& planned, bool colour);
std::string plan_json(const PlanOptions& options, const Planned& planned);

std::string explain_text(const PlanOptions& options, const Planned& planned);
std::string explain_json(const PlanOptions& options, const Planned& planned);

std::string simulate_text(const PlanOptions& options, const Simulated& simulated);
std::string simulate_json(const PlanOptions& options, const Simulated& simulated);

std::string fit_text(const Fit& fit, const FitOptions& options, bool colour);
std::string fit_json(const Fit& fit, const FitOptions& options);

std::string validation_text(const Validation& validation);
std::string validation_json(const Validation& validation);

std::string models_text(const ListOptions& options);
std::string gpus_text(const ListOptions& options);

}  // namespace shardplan::memcalc
