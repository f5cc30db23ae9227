// In the place of mpi_ranks.cpp where MPI was not found, or not asked for.
#include "base/error.h"
#include "tools/train/ranks.h"

namespace shardplan::train {
namespace {

std::uint64_t world_size(std::optional<std::uint64_t>) {
  throw ConfigError("--comm", "",
                    "this program was built without MPI: install libopenmpi-dev and openmpi-bin (or libmpich-dev and "
                    "mpich), and build with -DSHARDPLAN_MPI=ON");
}

}  // namespace

RankKind mpi_ranks() {
  return {.name = "mpi", .what = "the processes of mpirun or srun (not built)", .world_size = world_size};
}

RankKind mpi_shared_ranks() {
  return {.name = "mpi+shared", .what = "the same over shared memory (not built)", .world_size = world_size};
}

}  // namespace shardplan::train
