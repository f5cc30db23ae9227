// --ds-config, --accelerate-config and --megatron-args: training configuration files, put into the options of plan.
//
// A file says what no flag does: a flag on the command line wins. --precision stands for every dtype and --offload for
// every class; --micro-batch and --grad-accum also stand against a global batch in the file, which then gives way.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "planner/formats/training_config.h"
#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

// As given on the command line.
struct ConfigFlags {
  std::vector<std::string> ds_config;
  std::vector<std::string> accelerate_config;
  std::vector<std::string> megatron_args;
};

// Reads the file that was named; nothing where none was. Throws ConfigError with the flag where one is given twice or
// two of them are, for they would contradict each other; ConfigError with file and key, or IoError, for the file.
// The model of --megatron-args goes into the options.
std::optional<TrainingConfig> read_config_file(const ConfigFlags& flags, PlanOptions& options);

// `given`: the flags on the command line, as "--zero". Called while the options are as flags left them:
// setup.world_size still counts all ranks and the policy is not resolved. Afterwards options.origins says which flags
// stand for which keys.
void apply_config(const TrainingConfig& config, const std::set<std::string>& given, PlanOptions& options,
                  PolicyFlags& policy);

// Micro-batch and accumulation, once the data axis is known. Throws ConfigError (resolve_batch).
void apply_batch(const TrainingConfig& config, const std::set<std::string>& given, PlanOptions& options);

// The options of a run whose arguments are `run`, as --megatron-args without any other flag makes them. Throws ConfigError.
PlanOptions options_of(MegatronRun run);

// An error about a flag that stands for a key of the file, told as one about the file.
ConfigError told_of_file(const ConfigError& error, const PlanOptions& options);

// 2: the command line is wrong. 3: a file is.
int exit_status_of(const ConfigError& error);

}  // namespace shardplan::memcalc
