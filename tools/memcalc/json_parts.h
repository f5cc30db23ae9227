// Members that several commands' JSON has.
#pragma once

#include <boost/json/object.hpp>

#include "tools/memcalc/calibrating.h"
#include "tools/memcalc/comparing.h"
#include "tools/memcalc/options.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

boost::json::object model_json(const Catalog& catalog);
boost::json::object traffic_json(const Traffic& traffic);
boost::json::object rank_json(const RankReport& rank);
boost::json::object setup_json(const PlanOptions& options, const Planned& planned);
boost::json::object comparison_json(const PlanOptions& options, const Planned& planned, const Comparison& comparison);
boost::json::object calibration_json(const Calibration& calibration);

}  // namespace shardplan::memcalc
