#include "tools/bench/limit.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace shardplan::bench {
Part part_of(std::size_t elements, int index, int parts) {
  const auto cut = [&](int at) {
    if (at == parts) return elements;
    return elements / static_cast<std::size_t>(parts) * static_cast<std::size_t>(at) / 64 * 64;
  };
  return {.first = cut(index), .count = cut(index + 1) - cut(index)};
}

Team::Team(int size) : gate_(size + 1) {
  for (int member = 0; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
}

Team::~Team() {
  stop_ = true;
  gate_.arrive_and_wait();
  for (std::thread& thread : threads_) thread.join();
}

double Team::seconds(const std::function<void(int)>& work) {
  work_ = work;
  const auto start = std::chrono::steady_clock::now();
  gate_.arrive_and_wait();
  gate_.arrive_and_wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Team::serve(int member) {
  for (;;) {
    gate_.arrive_and_wait();
    if (stop_) return;
    work_(member);
    gate_.arrive_and_wait();
  }
}

ArrayMemory::ArrayMemory(std::size_t bytes) : mapping_(Bytes{bytes}, "host") {}

std::byte* ArrayMemory::take_bytes(std::size_t bytes) {
  used_ = round_up(used_, 4096) + arrays_++ % 8 * 4096;
  std::byte* const array = mapping_.data() + used_;
  used_ += bytes;
  SHARDPLAN_CHECK(Bytes{used_} <= mapping_.bytes(), "more arrays than there was room for");
  return array;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void compare(benchmark::State& state, const char* ratio_name, std::size_t elements,
             const std::function<double()>& limit, const std::function<double()>& candidate) {
  limit();
  candidate();
  std::vector<double> seconds;
  std::vector<double> ratios;
  for ([[maybe_unused]] auto _ : state) {
    const double allowed = limit();
    seconds.push_back(candidate());
    ratios.push_back(allowed / seconds.back());
    state.SetIterationTime(seconds.back());
  }
  state.counters["elements_per_second"] = static_cast<double>(elements) / median(seconds);
  state.counters[ratio_name] = median(ratios);
}

void register_pairs(const char* name, void (*run)(benchmark::State&), const char* argument, std::int64_t value) {
  benchmark::RegisterBenchmark(name, run)
      ->ArgName(argument)
      ->Arg(value)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->Iterations(kPairs);
}

}  // namespace shardplan::bench
