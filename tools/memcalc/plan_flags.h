// The flags that plan, explain, fit and simulate share, and how they become options.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tools/memcalc/config_files.h"
#include "tools/memcalc/options.h"

namespace CLI {  // NOLINT(readability-identifier-naming): CLI11 is called so
class App;
}

namespace shardplan::memcalc {

// --lora-rank, --lora-targets and --modules-to-save are one thing once all flags are read.
struct LoraFlags {
  std::optional<std::uint64_t> rank;
  std::vector<std::string> targets;
  std::vector<std::string> modules_to_save;
  std::optional<DType> dtype{};
  std::optional<double> dropout{};
};

// What the flags of plan say besides the options themselves.
struct PlanFlags {
  std::vector<std::string> models;
  PolicyFlags policy;
  LoraFlags lora;
  ConfigFlags config;
};

// MODEL as it is given: "name" or "name:frozen", which freezes all its tensors.
void set_model(PlanOptions& options, const std::string& text);

// `app` fills both while it parses.
void add_plan_flags(CLI::App* app, PlanOptions& options, PlanFlags& flags);

// What was parsed, with what configuration files say, becomes one set-up. `given`: the flags on the command line, as
// "--zero". Throws ConfigError with the flag, or the file's key, that is to blame; IoError for a file.
void finish(PlanOptions& options, PlanFlags& flags, const std::set<std::string>& given);

}  // namespace shardplan::memcalc
