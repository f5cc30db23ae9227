#include "tools/mpi/launcher.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <string_view>

#include "base/error.h"

namespace shardplan {
namespace {

std::optional<std::uint64_t> number(const Environment& environment, const char* variable) {
  const char* const value = environment(variable);
  if (value == nullptr) return std::nullopt;
  const std::string_view text(value);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

void add(std::vector<LaunchedWorld>& worlds, const Environment& environment, const char* variable) {
  if (const auto ranks = number(environment, variable)) worlds.push_back({variable, *ranks});
}

}  // namespace

std::vector<LaunchedWorld> launched_worlds(const Environment& environment) {
  std::vector<LaunchedWorld> worlds;
  add(worlds, environment, "OMPI_COMM_WORLD_SIZE");
  add(worlds, environment, "PMI_SIZE");
  // mpirun in a Slurm job starts its daemons by srun: then the step is one of daemons.
  if (worlds.empty()) add(worlds, environment, "SLURM_STEP_NUM_TASKS");
  return worlds;
}

bool is_first_process(const Environment& environment) {
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    if (const auto rank = number(environment, variable)) return *rank == 0;
  }
  return true;
}

void require_launched(const std::vector<LaunchedWorld>& worlds, std::uint64_t ranks, const std::string& library) {
  for (const LaunchedWorld& world : worlds) {
    if (world.ranks == ranks) continue;
    throw ConfigError(
        world.variable, "",
        fmt::format("the launcher has started {} processes, MPI's world has {}: expected the launcher of the "
                    "MPI that this program is linked with, {}",
                    world.ranks, ranks, library));
  }
}

}  // namespace shardplan
