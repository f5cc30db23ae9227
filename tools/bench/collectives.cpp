// Compile with -O3: the limit is a plain loop that must be vectorised.
#include "tools/bench/collectives.h"

#include <benchmark/benchmark.h>

#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "runtime/cpu_device.h"
#include "runtime/local_communicator.h"
#include "tools/bench/collective_rank.h"
#include "tools/bench/limit.h"
#include "tools/bench/process_ranks.h"

namespace shardplan::bench {
namespace {

constexpr int kLimitThreads = 2;

// N ranks that are threads.
class Ranks {
 public:
  Ranks(std::uint64_t bytes, int ranks) : ranks_(static_cast<std::size_t>(ranks)) {
    auto communicators = make_local_communicators(ranks);
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      threads.emplace_back([this, rank, bytes, &communicators] {
        ranks_[rank] = std::make_unique<CollectiveRank>(std::move(communicators[rank]), device_, bytes);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  std::size_t size() const { return ranks_.size(); }
  std::uint64_t shard() const { return ranks_.front()->shard(); }
  float* vector_of(std::size_t rank) const { return ranks_[rank]->vector(); }
  float* sums_of(std::size_t rank) const { return ranks_[rank]->sums(); }
  void run(Collective what, int rank) { ranks_[static_cast<std::size_t>(rank)]->run(what); }

 private:
  CpuDevice device_;
  std::vector<std::unique_ptr<CollectiveRank>> ranks_;
};

template <std::size_t kRanks>
void sum_loop(const std::vector<const float*>& from, std::size_t count, float* to) {
  const float* inputs[kRanks];
  std::copy_n(from.begin(), kRanks, inputs);
  for (std::size_t i = 0; i < count; ++i) {
    float sum = inputs[0][i];
    for (std::size_t k = 1; k < kRanks; ++k) sum += inputs[k][i];
    to[i] = sum * 0.5F;
  }
}

// The loads and stores of a collective, shared by two threads: each does its half of every rank's piece.
class Limit {
 public:
  explicit Limit(Ranks& ranks) : ranks_(ranks), middle_(kLimitThreads) {}

  void run(Collective what, int thread) {
    if (what != Collective::all_gather) reduce(what, thread);
    if (what == Collective::all_reduce) middle_.arrive_and_wait();
    if (what != Collective::reduce_scatter) gather(thread);
  }

 private:
  std::size_t begin(int thread) const { return ranks_.shard() * static_cast<std::size_t>(thread) / kLimitThreads; }

  void reduce(Collective what, int thread) {
    const std::size_t first = begin(thread);
    const std::size_t count = begin(thread + 1) - first;
    for (std::size_t owner = 0; owner < ranks_.size(); ++owner) {
      const std::size_t at = ranks_.shard() * owner + first;
      std::vector<const float*> from;
      for (std::size_t rank = 0; rank < ranks_.size(); ++rank) from.push_back(ranks_.vector_of(rank) + at);
      float* to = what == Collective::all_reduce ? ranks_.vector_of(owner) + at : ranks_.sums_of(owner) + first;
      switch (from.size()) {
        case 2:
          sum_loop<2>(from, count, to);
          break;
        case 4:
          sum_loop<4>(from, count, to);
          break;
        default:
          sum_loop<8>(from, count, to);
          break;
      }
    }
  }
  void gather(int thread) {
    const std::size_t first = begin(thread);
    const std::size_t bytes = (begin(thread + 1) - first) * sizeof(float);
    for (std::size_t owner = 0; owner < ranks_.size(); ++owner) {
      const std::size_t at = ranks_.shard() * owner + first;
      for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
        if (rank != owner) std::memcpy(ranks_.vector_of(rank) + at, ranks_.vector_of(owner) + at, bytes);
      }
    }
  }

  Ranks& ranks_;
  std::barrier<> middle_;
};

// Candidate and limit in turns.
void compare(benchmark::State& state, const std::function<double()>& limit, const std::function<double()>& candidate) {
  const auto bytes = static_cast<double>(state.range(0));
  candidate();
  limit();
  std::vector<double> seconds;
  std::vector<double> ratios;
  for ([[maybe_unused]] auto _ : state) {
    const double allowed = limit();
    seconds.push_back(candidate());
    ratios.push_back(allowed / seconds.back());
    state.SetIterationTime(seconds.back());
  }
  state.counters["bytes_per_second"] = bytes / median(seconds);
  state.counters["ratio_to_limit"] = median(ratios);
}

void run_threads(benchmark::State& state, Collective what) {
  const int size = static_cast<int>(state.range(1));
  Ranks ranks(static_cast<std::uint64_t>(state.range(0)), size);
  Limit limit(ranks);
  Team rank_team(size);
  Team limit_team(kLimitThreads);
  compare(
      state, [&] { return limit_team.seconds([&](int thread) { limit.run(what, thread); }); },
      [&] { return rank_team.seconds([&](int rank) { ranks.run(what, rank); }); });
}

// Against the same limit as threads, over buffers of its own.
void run_processes(benchmark::State& state, Collective what) {
  const auto bytes = static_cast<std::uint64_t>(state.range(0));
  const int size = static_cast<int>(state.range(1));
  ProcessRanks processes(size, bytes, what);  // forks, so before the threads
  Ranks ranks(bytes, size);
  Limit limit(ranks);
  Team limit_team(kLimitThreads);
  compare(
      state, [&] { return limit_team.seconds([&](int thread) { limit.run(what, thread); }); },
      [&] { return processes.seconds(); });
}

using Run = void (*)(benchmark::State&, Collective);

void register_case(const std::string& name, Collective what, Run run, const std::vector<std::int64_t>& bytes) {
  benchmark::RegisterBenchmark(name.c_str(), [what, run](benchmark::State& state) { run(state, what); })
      ->ArgNames({"bytes", "ranks"})
      ->ArgsProduct({bytes, {2, 4, 8}})
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->Iterations(kPairs);
}

}  // namespace

void register_collectives() {
  const std::pair<const char*, Collective> cases[] = {{"all_reduce", Collective::all_reduce},
                                                      {"reduce_scatter", Collective::reduce_scatter},
                                                      {"all_gather", Collective::all_gather}};
  for (const auto& [name, what] : cases) {
    register_case(name, what, run_threads, {64'000'000, 512'000'000});
    register_case(std::string(name) + "_shared", what, run_processes, {64'000'000});
  }
}

}  // namespace shardplan::bench
