// The GPUs of this machine, as its driver describes them, and the rows of the table that they are.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/gpu.h"
#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

// The row whose words ("h100", "pcie", but for "80gb") are all in the driver's name and whose memory is within 5 % of
// `memory`; the one with the most words, then the nearest memory. Null if there is none.
const Gpu* row_of(const std::vector<Gpu>& table, std::string_view driver_name, Bytes memory);

// For memcalc gpus --detect. Throws ConfigError where there are none to show: no module, no driver, no GPU.
std::string detected_gpus_text(const ListOptions& options);

}  // namespace shardplan::memcalc
