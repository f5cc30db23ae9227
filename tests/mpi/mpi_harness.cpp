// The conformance suite on the processes that mpirun has started: each runs every test, as one rank.
#include <gtest/gtest.h>
#include <mpi.h>

#include <exception>
#include <memory>

#include "runtime/cpu_device.h"
#include "runtime/mpi/mpi_exchange.h"
#include "runtime/staged/staged_communicator.h"
#include "tests/runtime/communicator_conformance.h"
#include "tools/mpi/mpi_session.h"

namespace shardplan::test {
namespace {

int mpi_world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

class MpiHarness final : public RankHarness {
 public:
  std::string name() const override { return "Mpi"; }
  // No smaller worlds: all processes have something to do.
  std::vector<int> worlds() const override { return {mpi_world_size()}; }

  std::map<int, Outcome> run(int ranks, std::chrono::milliseconds deadline, const Body& body) const override {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm part = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, rank < ranks ? 0 : MPI_UNDEFINED, rank, &part);
    if (part == MPI_COMM_NULL) return {};
    const Outcome outcome = outcome_of(run_rank(part, deadline, body));
    MPI_Comm_free(&part);
    return {{rank, outcome}};
  }

 private:
  static std::exception_ptr run_rank(MPI_Comm part, std::chrono::milliseconds deadline, const Body& body) {
    try {
      CpuDevice device;
      const auto communicator = make_staged_communicator(make_mpi_exchange(part, {.deadline = deadline, .yield = {}}));
      body(*communicator, device);
    } catch (...) {
      return std::current_exception();
    }
    return nullptr;
  }
};

}  // namespace

std::vector<std::shared_ptr<RankHarness>> harnesses_under_test() {
  return {std::make_shared<MpiHarness>()};
}

}  // namespace shardplan::test

int main(int argc, char** argv) {
  const shardplan::MpiSession session;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
