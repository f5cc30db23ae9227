// What ranks tell each other while they save or load.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/communicator.h"

namespace shardplan {

enum class Outcome : std::uint8_t { done, damaged, refused };

// The worst outcome of all ranks, and the text of the first rank that has it.
struct JointOutcome {
  Outcome outcome = Outcome::done;
  std::string problem;
};

// Runs `act` and exchanges how it went: CheckpointError, IoError, OutOfMemory -> damaged; ConfigError -> refused. What
// else `act` throws, a communicator's failure among it, is thrown here. Collective.
JointOutcome act_together(Communicator& world, const std::function<void()>& act);
// The same; throws CheckpointError(path, problem) or ConfigError(path, "", problem) on every rank.
void succeed_together(Communicator& world, const std::string& path, const std::function<void()>& act);

// Rank 0's text on every rank, and every rank's text, in rank order, on rank 0 (elsewhere nothing). Of any lengths, in
// rounds of at most some hundred KiB. Collective.
std::string text_of_first(Communicator& world, const std::string& mine);
std::vector<std::string> texts_on_first(Communicator& world, const std::string& mine);

}  // namespace shardplan
