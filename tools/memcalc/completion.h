// `memcalc completion`: a Bash function that completes commands, flags, and the names of models and GPUs.
#pragma once

#include <string>
#include <vector>

namespace shardplan::memcalc {

// A command and its flags, as "--zero": taken from the parser, so that completion is never behind it.
struct CompletedCommand {
  std::string name;
  std::vector<std::string> flags;
};

std::string completion_script(const std::vector<CompletedCommand>& commands);

}  // namespace shardplan::memcalc
