// Where the ranks of a training come from: one file for each kind, NAME_ranks.cpp, with one function that describes it.
//
//   local_ranks.cpp    threads of this process
//   shared_ranks.cpp   processes of this machine, which read each other's memory
//   mpi_ranks.cpp      processes that a launcher has started, over MPI; no_mpi_ranks.cpp where it is not built
//
// A kind is added by a row in ranks.cpp and a source in CMakeLists.txt; where it cannot be built, another source stands
// for it whose world_size() says why.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include "base/error.h"
#include "tools/train/training.h"

namespace shardplan::train {

// Prints what a training gave. `first` is what rank 0 saw.
using Show = std::function<void(const Training& training, const RankResult& first)>;

// Why this process ends has been said by another one.
class SaidElsewhere : public Error {
 public:
  SaidElsewhere() : Error("another rank has said why") {}
};

struct RankKind {
  std::string_view name;  // after --comm
  std::string_view what;  // for --help
  // Whether each rank is a process, so that their memory adds up; else all are in this one.
  bool own_processes = false;

  // How many ranks there will be, `asked` for with --ranks: called once, before anything else, when this kind has been
  // chosen. ConfigError if that cannot be (too many, or a launcher's world is another one).
  std::uint64_t (*world_size)(std::optional<std::uint64_t> asked) = nullptr;

  // Trains on all ranks. Each process reads and plans (make_training), or has it from the one that started it; rank 0's
  // calls `show`, and the others say nothing. Returns when every rank that this process has started is gone. Throws what
  // was first to fail, with the rank's number where a process failed; SaidElsewhere if that is another process's to say.
  void (*train)(const TrainingOptions& options, const Show& show) = nullptr;
};

RankKind local_ranks();
RankKind shared_ranks();
RankKind mpi_ranks();
RankKind mpi_shared_ranks();

std::span<const RankKind> rank_kinds();
// ConfigError that lists what is known.
const RankKind& rank_kind_named(std::string_view name);

}  // namespace shardplan::train
