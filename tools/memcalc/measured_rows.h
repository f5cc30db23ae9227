// The readers of one program each.
#pragma once

#include "tools/memcalc/measured_programs.h"

namespace shardplan::memcalc {

ProgramRun litgpt_run(const boost::json::object& row);
ProgramRun peft_run(const boost::json::object& row);
ProgramRun torchtune_run(const boost::json::object& row);
ProgramRun torchtitan_run(const boost::json::object& row);

}  // namespace shardplan::memcalc
