// The version of the programs, from CMake's project().
#pragma once

namespace shardplan {

inline constexpr const char* kVersion = SHARDPLAN_VERSION;

}  // namespace shardplan
