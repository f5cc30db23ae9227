// A world of N ranks is N forked processes in a test. The calling process must have no other thread.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <vector>

#include "runtime/shared/shared_communicator.h"
#include "tests/support/outcome.h"

namespace shardplan::test {

// Runs body(rank) in `processes` forked processes and returns how each ended when all have. Expectations that fail in one
// of them fail here too. `watch` is called once they run, with their ids.
std::vector<Outcome> run_processes(int processes, const std::function<void(int rank)>& body,
                                   const std::function<void(const std::vector<pid_t>&)>& watch = {});

// The same with a communicator over shared memory, which each body owns and may destroy.
std::vector<Outcome> run_shared_ranks(int ranks, const std::function<void(std::unique_ptr<Communicator>)>& body,
                                      const SharedOptions& options = {},
                                      const std::function<void(const std::vector<pid_t>&)>& watch = {});

}  // namespace shardplan::test
