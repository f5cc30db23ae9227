// A set-up of engine deepspeed as a ds_config.json that DeepSpeed accepts and that ds_config.h reads back.
//
// Written is what decides bytes: batch keys, precision, optimizer, zero_optimization, aio, parallelism. The launcher says
// the number of ranks, the client's code the model, its learning rate, adapters, what it recomputes.
#pragma once

#include <cstdint>
#include <string>

#include "planner/engines/options.h"
#include "planner/setup.h"

namespace shardplan {

// Throws ConfigError, with the flag as its source, for what the format cannot say: replicas without MiCS, pipeline
// stages, moving averages, dtypes that DeepSpeed does not have, optimizers that it has no name for, nvme without a folder.
// `setup` and `options` are settled (engines/deepspeed.h, settle_deepspeed).
std::string ds_config_text(const Setup& setup, const DeepSpeedOptions& options, std::uint64_t micro_batch);

}  // namespace shardplan
