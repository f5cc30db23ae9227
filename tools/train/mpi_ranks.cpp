// Ranks that a launcher (mpirun, srun) has started: this process is one of them.
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/mpi/mpi_communicator.h"
#include "runtime/shared/shared_communicator.h"
#include "tools/mpi/mpi_session.h"
#include "tools/train/ranks.h"

namespace shardplan::train {
namespace {

constexpr int kFailed = 3;

// From world_size() to the end of train(); if the command line is bad, to the end of the process.
std::optional<MpiSession>& session() {
  static std::optional<MpiSession> session;
  return session;
}

std::uint64_t world_size(std::optional<std::uint64_t> asked) {
  const auto size = static_cast<std::uint64_t>(session().emplace().size());
  if (asked.value_or(size) != size) {
    throw ConfigError("--ranks", "",
                      fmt::format("{}, while MPI's world has {} ranks: it is the launcher's to say", *asked, size));
  }
  return size;
}

// Each process reads and plans. What is wrong with it is wrong for all of them, as a rule (no such file): the first one
// that it is wrong for says so, and all end.
Training make_training_on_all(const TrainingOptions& options) {
  std::optional<Training> training;
  std::exception_ptr failure;
  try {
    training.emplace(make_training(options));
  } catch (const std::exception&) {
    failure = std::current_exception();
  }
  const std::byte mine{failure ? std::uint8_t{1} : std::uint8_t{0}};
  std::vector<std::byte> failed(static_cast<std::size_t>(session()->size()));
  session()->all_gather({&mine, 1}, failed);
  const auto first = std::find(failed.begin(), failed.end(), std::byte{1});
  if (first == failed.end()) return std::move(*training);
  if (first - failed.begin() != session()->rank()) throw SaidElsewhere();
  std::rethrow_exception(failure);
}

void train_in(Communicator& world, const Training& training, Device& device, const Show& show) {
  RankResult result;
  try {
    result = train_rank(training, world, device);
  } catch (const std::exception& error) {
    world.abort(error.what());
    throw;
  }
  if (world.rank() == 0) show(training, result);
}

// Every rank tells what it saw of the others, for only one may know.
template <typename Train>
void run(const Train& train_rank_of) {
  try {
    train_rank_of();
  } catch (const std::exception& error) {
    fmt::print(stderr, "shardplan-train: rank {}: {}\n", session()->rank(), error.what());
    std::fflush(nullptr);
    session()->abort(kFailed);
  }
  session().reset();
}

void train_over_mpi(const TrainingOptions& options, const Show& show) {
  TrainingOptions staged = options;
  staged.setup.transport = Transport::staged;
  const Training training = make_training_on_all(staged);
  run([&] {
    CpuDevice cpu;
    const auto world = make_mpi_communicator({.deadline = options.deadline, .yield = {}});
    train_in(*world, training, cpu, show);
  });
}

void train_over_shared_memory(const TrainingOptions& options, const Show& show) {
  const Training training = make_training_on_all(options);
  run([&] {
    CpuDevice cpu(HostPages::shareable);
    const ExchangeBlobs exchange = [](std::span<const std::byte> mine, std::span<std::byte> all) {
      session()->all_gather(mine, all);
    };
    const auto world =
        make_shared_communicator(session()->rank(), session()->size(), exchange, {.deadline = options.deadline});
    train_in(*world, training, cpu, show);
  });
}

}  // namespace

RankKind mpi_ranks() {
  return {.name = "mpi",
          .what = "the processes of mpirun or srun, by MPI's messages",
          .own_processes = true,
          .world_size = world_size,
          .train = train_over_mpi};
}

RankKind mpi_shared_ranks() {
  return {.name = "mpi+shared",
          .what = "the processes of mpirun or srun on one machine, over shared memory",
          .own_processes = true,
          .world_size = world_size,
          .train = train_over_shared_memory};
}

}  // namespace shardplan::train
