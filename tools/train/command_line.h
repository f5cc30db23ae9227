// The command line of shardplan-train.
#pragma once

#include <optional>

#include "tools/train/ranks.h"

namespace shardplan::train {

// The exit status instead where there is nothing left to do: 0 after --help, 2 after a message on stderr
// (of one process, where a launcher has started several).
struct ParseResult {
  TrainingOptions options;
  const RankKind* kind = nullptr;
  std::optional<int> exit_status;
};
ParseResult parse_command_line(int argc, char** argv);

}  // namespace shardplan::train
