// --export: the set-up of a plan as a configuration file for the program that trains.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

// A format says whose file it is: where --engine is not given, that engine. Called before a configuration file is
// applied, which may say another.
void choose_engine_of_export(const std::set<std::string>& given, PlanOptions& options);

// Throws ConfigError where flags and files together chose another engine than the format's.
void check_engine_of_export(const PlanOptions& options);

// The file. `options` are planned: what the engine refuses is refused before. Throws ConfigError, with the flag as its
// source, for a set-up that the format cannot say.
std::string export_text(const PlanOptions& options);

// What of the set-up the file does not say, because the client's own code does: a line for each.
std::vector<std::string> export_notes(const PlanOptions& options);

}  // namespace shardplan::memcalc
