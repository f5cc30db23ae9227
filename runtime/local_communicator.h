// Communicators among the threads of one process. Ranks read each other's arenas directly; nothing is staged.
//
//   auto communicators = make_local_communicators(4, {.deadline = 30s});
//   for each rank r: start a thread that owns communicators[r]
//
// A waiting rank first spins, if the family has no more ranks than the machine has hardware threads, then
// sleeps. It spends no processor time on a peer that is late.
#pragma once

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "runtime/communicator.h"

namespace shardplan {

struct LocalOptions {
  // Of each wait for a peer. Longer than the longest computation between two collectives; shorter finds a
  // stalled rank sooner.
  std::chrono::milliseconds deadline{60'000};
  // Spinning is for families of at most so many ranks. 0: never spin.
  unsigned hardware_threads = std::thread::hardware_concurrency();
};

// Communicator r is rank r's. ranks >= 1.
std::vector<std::unique_ptr<Communicator>> make_local_communicators(int ranks, const LocalOptions& options = {});

}  // namespace shardplan
