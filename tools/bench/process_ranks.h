// Ranks that are processes over shared memory, running the same collective again and again.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tools/bench/collective_rank.h"

namespace shardplan::bench {

class ProcessRanks {
 public:
  // Forks: there must be no other thread.
  ProcessRanks(int ranks, std::uint64_t bytes, Collective what);
  ~ProcessRanks();
  ProcessRanks(const ProcessRanks&) = delete;
  ProcessRanks& operator=(const ProcessRanks&) = delete;

  double seconds();  // of one run, from the first start to the last end

 private:
  std::vector<pid_t> processes_;
  std::unique_ptr<Communicator> gate_;  // of the ranks and of this process
};

}  // namespace shardplan::bench
