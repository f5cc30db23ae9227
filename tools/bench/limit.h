// What every case shares: threads, memory, and the comparison with a limit in alternation.
//
// A limit is the least that the memory system asks for the same reads and writes. Memory on a shared machine is faster
// or slower from one second to the next, so a candidate and its limit take turns, and the median of the ratios counts.
#pragma once

#include <benchmark/benchmark.h>

#include <barrier>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "runtime/host_memory.h"
#include "tools/bench/limit_kernels.h"

namespace shardplan::bench {

inline constexpr int kPairs = 9;

// The kernels of the best level that this processor runs.
const LimitKernels& limit_kernels();

// A half-open part of some elements.
struct Part {
  std::size_t first;
  std::size_t count;
};
// Part `index` of `parts` nearly equal ones, cut at multiples of 64.
Part part_of(std::size_t elements, int index, int parts);

// Threads that do the same work again and again, timed from the first start to the last end.
class Team {
 public:
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return static_cast<int>(threads_.size()); }
  double seconds(const std::function<void(int)>& work);

 private:
  void serve(int member);

  std::barrier<> gate_;
  std::function<void(int)> work_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// Populated memory from which arrays are cut one after the other. Array k starts k x 4096 bytes (k modulo 8) past where
// it would, as in an arena: equal distances of a power of two would collide in the caches.
class ArrayMemory {
 public:
  explicit ArrayMemory(std::size_t bytes);
  template <typename T>
  T* take(std::size_t elements) {
    return reinterpret_cast<T*>(take_bytes(elements * sizeof(T)));
  }
  // Enough for `arrays` arrays of `bytes` bytes in all.
  static std::size_t room(std::size_t bytes, std::size_t arrays) { return bytes + arrays * 9 * 4096; }

 private:
  std::byte* take_bytes(std::size_t bytes);

  HostMapping mapping_;
  std::size_t used_ = 0;
  std::size_t arrays_ = 0;
};

// Runs limit and candidate in turns, once per iteration of `state` (registered with kPairs of them and manual time,
// which is the candidate's). Sets the counters elements_per_second and `ratio_name`: the limit's time over the
// candidate's.
void compare(benchmark::State& state, const char* ratio_name, std::size_t elements,
             const std::function<double()>& limit, const std::function<double()>& candidate);

double median(std::vector<double> values);

// NAME/ARGUMENT:VALUE, of kPairs turns whose time it says itself.
void register_pairs(const char* name, void (*run)(benchmark::State&), const char* argument, std::int64_t value);

}  // namespace shardplan::bench
