// Compile with -O3: the limit is a plain loop that must be vectorised.
#include "tools/bench/collectives.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "runtime/cpu_device.h"
#include "runtime/local_communicator.h"

namespace shardplan::bench {
namespace {

constexpr int kPairs = 9;
constexpr int kLimitThreads = 2;

enum class Collective { all_reduce, reduce_scatter, all_gather };

// Threads that run the same work again and again, timed from the first start to the last end.
class Team {
 public:
  explicit Team(int size) : gate_(size + 1) {
    for (int member = 0; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
  }
  ~Team() {
    stop_ = true;
    gate_.arrive_and_wait();
    for (std::thread& thread : threads_) thread.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  double seconds(const std::function<void(int)>& work) {
    work_ = work;
    const auto start = std::chrono::steady_clock::now();
    gate_.arrive_and_wait();
    gate_.arrive_and_wait();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  void serve(int member) {
    for (;;) {
      gate_.arrive_and_wait();
      if (stop_) return;
      work_(member);
      gate_.arrive_and_wait();
    }
  }
  std::barrier<> gate_;
  std::function<void(int)> work_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// N ranks, each with an arena that holds the full vector and, behind it, room for this rank's sums.
struct Ranks {
  std::uint64_t elements;  // of the full vector
  std::uint64_t shard;
  std::uint64_t sums_at;  // offset in bytes
  CpuDevice device;
  std::vector<std::unique_ptr<Communicator>> communicators;
  std::vector<std::unique_ptr<SymmetricArena>> arenas;
  std::vector<Lease> leases;
  std::vector<std::unique_ptr<Stream>> streams;

  Ranks(std::uint64_t bytes, int ranks)
      : elements(bytes / sizeof(float)),
        shard(elements / static_cast<std::uint64_t>(ranks)),
        // One array after the other, shifted by a page: see docs/design.md on congruent arrays.
        sums_at(round_up(bytes, 4096) + 4096),
        communicators(make_local_communicators(ranks)),
        arenas(static_cast<std::size_t>(ranks)),
        leases(arenas.size()),
        streams(arenas.size()) {
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < arenas.size(); ++rank) {
      threads.emplace_back([this, rank] {
        const Bytes used{sums_at + shard * sizeof(float)};
        arenas[rank] =
            communicators[rank]->make_arena(device, {.tier = MemoryTier::device, .bytes = used + kArenaShiftRoom});
        leases[rank] = arenas[rank]->take(0, used);
        streams[rank] = device.make_stream();
        std::fill_n(vector_of(rank), elements, 1.0F / static_cast<float>(rank + 1));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  // Leases end before their arenas.
  ~Ranks() { leases.clear(); }

  float* vector_of(std::size_t rank) const { return reinterpret_cast<float*>(arenas[rank]->data()); }
  float* sums_of(std::size_t rank) const { return reinterpret_cast<float*>(arenas[rank]->data() + sums_at); }

  void run(Collective what, int rank) {
    const auto index = static_cast<std::size_t>(rank);
    const Piece mine{.first = shard * index, .count = shard};
    SymmetricArena* arena = arenas[index].get();
    const ArenaPlace piece{arena, mine.first * sizeof(float)};
    if (what != Collective::all_gather) {
      const ArenaPlace sums = what == Collective::all_reduce ? piece : ArenaPlace{arena, sums_at};
      communicators[index]->reduce_scatter(
          {.input = {arena, 0}, .elements = elements, .mine = mine, .scale = 0.5F, .output = {.place = sums}},
          *streams[index]);
    }
    if (what != Collective::reduce_scatter) {
      communicators[index]->all_gather({.input = piece, .output = {arena, 0}, .elements = elements, .mine = mine},
                                       *streams[index]);
    }
  }
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
  std::size_t begin(int thread) const { return ranks_.shard * static_cast<std::size_t>(thread) / kLimitThreads; }

  void reduce(Collective what, int thread) {
    const std::size_t first = begin(thread);
    const std::size_t count = begin(thread + 1) - first;
    for (std::size_t owner = 0; owner < ranks_.arenas.size(); ++owner) {
      const std::size_t at = ranks_.shard * owner + first;
      std::vector<const float*> from;
      for (std::size_t rank = 0; rank < ranks_.arenas.size(); ++rank) from.push_back(ranks_.vector_of(rank) + at);
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
    for (std::size_t owner = 0; owner < ranks_.arenas.size(); ++owner) {
      const std::size_t at = ranks_.shard * owner + first;
      for (std::size_t rank = 0; rank < ranks_.arenas.size(); ++rank) {
        if (rank != owner) std::memcpy(ranks_.vector_of(rank) + at, ranks_.vector_of(owner) + at, bytes);
      }
    }
  }

  Ranks& ranks_;
  std::barrier<> middle_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void run_case(benchmark::State& state, Collective what) {
  const auto bytes = static_cast<std::uint64_t>(state.range(0));
  const int size = static_cast<int>(state.range(1));
  Ranks ranks(bytes, size);
  Limit limit(ranks);
  Team rank_team(size);
  Team limit_team(kLimitThreads);
  const auto run_ranks = [&](int rank) { ranks.run(what, rank); };
  const auto run_limit = [&](int thread) { limit.run(what, thread); };
  rank_team.seconds(run_ranks);
  limit_team.seconds(run_limit);

  std::vector<double> seconds;
  std::vector<double> ratios;
  for ([[maybe_unused]] auto _ : state) {
    const double allowed = limit_team.seconds(run_limit);
    seconds.push_back(rank_team.seconds(run_ranks));
    ratios.push_back(allowed / seconds.back());
    state.SetIterationTime(seconds.back());
  }
  state.counters["bytes_per_second"] = static_cast<double>(bytes) / median(seconds);
  state.counters["ratio_to_limit"] = median(ratios);
}

}  // namespace

void register_collectives() {
  const std::pair<const char*, Collective> cases[] = {{"all_reduce", Collective::all_reduce},
                                                      {"reduce_scatter", Collective::reduce_scatter},
                                                      {"all_gather", Collective::all_gather}};
  for (const auto& [name, what] : cases) {
    benchmark::RegisterBenchmark(name, [what = what](benchmark::State& state) { run_case(state, what); })
        ->ArgNames({"bytes", "ranks"})
        ->ArgsProduct({{64'000'000, 512'000'000}, {2, 4, 8}})
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond)
        ->Iterations(kPairs);
  }
}

}  // namespace shardplan::bench
