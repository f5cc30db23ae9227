// A world of N ranks is N threads in a test.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/local_communicator.h"

namespace shardplan::test {

// Runs body once per rank. An exception in one rank aborts the others; the one that came first is rethrown when all
// have ended.
void run_ranks(int ranks, const std::function<void(Communicator&)>& body, const LocalOptions& options = {});

// How each rank ended: its exception, or null. Each body owns its communicator and may destroy it; nothing is aborted
// for it.
std::vector<std::exception_ptr> outcomes_of_ranks(int ranks,
                                                  const std::function<void(std::unique_ptr<Communicator>)>& body,
                                                  const LocalOptions& options = {});
// The same with communicators of any kind whose ranks may be threads.
std::vector<std::exception_ptr> outcomes_of_ranks(std::vector<std::unique_ptr<Communicator>> communicators,
                                                  const std::function<void(std::unique_ptr<Communicator>)>& body);

// What the exception says; empty for null.
std::string message_of(const std::exception_ptr& outcome);

}  // namespace shardplan::test
