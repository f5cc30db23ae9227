// An Exchange among the threads of a test: what StagedCommunicator needs of a transport, and nothing else.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/staged/exchange.h"

namespace shardplan::test {

// Exchange r is rank r's.
std::vector<std::unique_ptr<Exchange>> make_thread_exchanges(int ranks, std::chrono::milliseconds deadline);
// And the communicators over them.
std::vector<std::unique_ptr<Communicator>> make_staged_communicators(int ranks, std::chrono::milliseconds deadline);

}  // namespace shardplan::test
