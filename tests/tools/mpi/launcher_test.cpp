#include "tools/mpi/launcher.h"

#include <gtest/gtest.h>

#include <map>
#include <utility>

#include "tests/support/config_error.h"

namespace shardplan {
namespace {

Environment environment_of(std::map<std::string, std::string> variables) {
  return [variables = std::move(variables)](const char* variable) {
    const auto found = variables.find(variable);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

std::vector<LaunchedWorld> worlds_in(const std::map<std::string, std::string>& variables) {
  return launched_worlds(environment_of(variables));
}

TEST(Launcher, SaysHowManyProcessesItHasStarted) {
  EXPECT_TRUE(worlds_in({}).empty());
  const auto open_mpi = worlds_in({{"OMPI_COMM_WORLD_SIZE", "4"}});
  ASSERT_EQ(open_mpi.size(), 1U);
  EXPECT_STREQ(open_mpi[0].variable, "OMPI_COMM_WORLD_SIZE");
  EXPECT_EQ(open_mpi[0].ranks, 4U);
  EXPECT_EQ(worlds_in({{"PMI_SIZE", "3"}}).at(0).ranks, 3U);
  EXPECT_EQ(worlds_in({{"SLURM_STEP_NUM_TASKS", "8"}}).at(0).ranks, 8U);
  EXPECT_EQ(worlds_in({{"OMPI_COMM_WORLD_SIZE", "4"}, {"PMI_SIZE", "2"}}).size(), 2U);
  EXPECT_TRUE(worlds_in({{"OMPI_COMM_WORLD_SIZE", ""}, {"PMI_SIZE", "3x"}}).empty());
}

TEST(Launcher, OfSlurmIsAskedLast) {
  // mpirun's daemons are a step of their own; in a batch script nothing has been started yet.
  const auto daemons = worlds_in({{"OMPI_COMM_WORLD_SIZE", "4"}, {"SLURM_STEP_NUM_TASKS", "2"}});
  ASSERT_EQ(daemons.size(), 1U);
  EXPECT_EQ(daemons[0].ranks, 4U);
  EXPECT_TRUE(worlds_in({{"SLURM_NTASKS", "16"}, {"SLURM_PROCID", "0"}}).empty());
}

TEST(Launcher, SaysWhichProcessIsTheFirst) {
  EXPECT_TRUE(is_first_process(environment_of({})));
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    EXPECT_TRUE(is_first_process(environment_of({{variable, "0"}}))) << variable;
    EXPECT_FALSE(is_first_process(environment_of({{variable, "1"}}))) << variable;
    EXPECT_TRUE(is_first_process(environment_of({{variable, "first"}}))) << variable;
  }
  // mpirun in a Slurm job: its daemon on the second node was started by srun.
  EXPECT_TRUE(is_first_process(environment_of({{"OMPI_COMM_WORLD_RANK", "0"}, {"SLURM_PROCID", "1"}})));
}

TEST(Launcher, MayNotDisagreeWithMpi) {
  require_launched({}, 1, "any");
  require_launched({{"OMPI_COMM_WORLD_SIZE", 4}}, 4, "Open MPI");
  test_support::expect_config_error([] { require_launched({{"PMI_SIZE", 4}}, 1, "Open MPI v4.1.4"); }, "PMI_SIZE", "",
                                    "the launcher has started 4 processes, MPI's world has 1: expected the launcher of "
                                    "the MPI that this program is linked with, Open MPI v4.1.4");
  test_support::expect_config_error(
      [] { require_launched({{"OMPI_COMM_WORLD_SIZE", 4}, {"PMI_SIZE", 2}}, 4, "Open MPI"); }, "PMI_SIZE", "",
      "started 2 processes, MPI's world has 4");
}

}  // namespace
}  // namespace shardplan
