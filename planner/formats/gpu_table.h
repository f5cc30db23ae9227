// Tables of accelerators: the one compiled in (planner/data/gpus.json) and the user's own, in the same format:
//
//   {"schema": "shardplan.gpus/1",
//    "gpus": [{"name": "my-gpu-48gb", "memory_bytes": 51539607552}, ...]}
//
// Required: name, memory_bytes. Optional, null or absent where not known: aliases, vendor, capacity_bytes (what the
// driver shows), bandwidth_bytes_per_second, bf16_flops, fp16_flops, fp32_flops (dense), link_bytes_per_second (one
// direction), pcie_generation, source, note. Another key is an error.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/gpu.h"

namespace shardplan {

// `source` names the text in errors. Throws ConfigError.
std::vector<Gpu> parse_gpu_table(std::string_view text, const std::string& source);

// The table compiled in, with the users' tables on top: a row of a known name replaces the earlier one. Throws
// ConfigError, and IoError for a file that cannot be read.
std::vector<Gpu> gpu_table(const std::vector<std::string>& files = {});

// By name or alias, in either case. Throws ConfigError that lists near names.
const Gpu& find_gpu(const std::vector<Gpu>& table, std::string_view name);

}  // namespace shardplan
