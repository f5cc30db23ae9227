// Ranks that are threads of this process.
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/local_communicator.h"
#include "tools/train/ranks.h"

namespace shardplan::train {
namespace {

std::uint64_t world_size(std::optional<std::uint64_t> asked) {
  if (asked > 256) throw ConfigError("--ranks", "", "more than 256 threads");
  return asked.value_or(1);
}

// The first exception aborts the other ranks and is thrown once all have ended.
void train(const TrainingOptions& options, const Show& show) {
  const Training training = make_training(options);
  const std::size_t ranks = options.ranks;
  std::vector<std::unique_ptr<Communicator>> worlds =
      make_local_communicators(static_cast<int>(ranks), {.deadline = options.deadline});
  std::vector<RankResult> results(ranks);
  CpuDevice cpu;
  std::mutex mutex;
  std::exception_ptr failure;
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        results[rank] = train_rank(training, *worlds[rank], cpu);
      } catch (const std::exception& error) {
        const std::scoped_lock lock(mutex);
        if (!failure) failure = std::current_exception();
        worlds[rank]->abort(error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
  show(training, results.front());
}

}  // namespace

RankKind local_ranks() {
  return {.name = "local", .what = "threads of this process", .world_size = world_size, .train = train};
}

}  // namespace shardplan::train
