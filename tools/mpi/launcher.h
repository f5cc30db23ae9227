// What launchers tell the processes that they start, in environment variables.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace shardplan {

// std::getenv, or a test's.
using Environment = std::function<const char*(const char* variable)>;

// How many processes a launcher says it has started, and where it says so.
struct LaunchedWorld {
  const char* variable = "";
  std::uint64_t ranks = 0;
};

// Of Open MPI's mpirun, of MPICH's and Intel's (or srun --mpi=pmi2), and of srun: its step, for in a batch script itself
// SLURM_NTASKS is what will be started. A value that is no number is left out.
std::vector<LaunchedWorld> launched_worlds(const Environment& environment);

// Whether this process is the first of those that a launcher has started, or no launcher has: it alone says what is the
// same for all of them, as that their command line is wrong, before MPI can be asked. Of srun (SLURM_PROCID), PMIx
// (srun --mpi=pmix, prrte), PMI and Open MPI's mpirun; the innermost counts.
bool is_first_process(const Environment& environment);

// Throws ConfigError, with both numbers, if a launcher has started another number of processes than MPI sees. `library` is
// MPI's own name and version. The common case is a program started by another MPI's mpirun: N worlds of one rank each.
void require_launched(const std::vector<LaunchedWorld>& worlds, std::uint64_t ranks, const std::string& library);

}  // namespace shardplan
