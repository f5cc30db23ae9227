// Who listens to a simulation: a trace of all ranks for Perfetto, and one rank's memory over time.
#pragma once

#include <iosfwd>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "planner/step_plan.h"
#include "runtime/virtual/virtual_world.h"
#include "tools/report/memory_chart.h"
#include "tools/report/trace.h"

namespace shardplan {

// Bytes by class of one rank's device, from the ranges that are handed out and given back.
class MemoryByRole {
 public:
  void taken(std::uint64_t address, Bytes bytes, std::string_view role);
  void given_back(std::uint64_t address);
  const report::MemoryByClass& now() const { return now_; }

 private:
  std::map<std::uint64_t, std::pair<report::MemoryClass, Bytes>> ranges_;
  report::MemoryByClass now_;
};

// Passes everything on to several.
class Listeners final : public VirtualTrace {
 public:
  void add(VirtualTrace* listener) { listeners_.push_back(listener); }
  void work(int rank, std::size_t stream, std::string_view what, Bytes bytes, double begin, double end) override;
  void taken(int rank, std::uint64_t address, Bytes bytes, std::string_view purpose, double time) override;
  void given_back(int rank, std::uint64_t address, Bytes bytes, double time) override;
  void waited(int rank, std::size_t stream, std::string_view what, int last, double begin, double end) override;
  void fault(const Fault& fault, double time) override;

 private:
  std::vector<VirtualTrace*> listeners_;
};

// Writes a trace: a process for each rank, a track for each of its streams (`files`: and for its file's), a counter of its
// device's memory by class.
class PerfettoObserver final : public VirtualTrace {
 public:
  PerfettoObserver(std::ostream& out, int ranks, bool files = false);
  void work(int rank, std::size_t stream, std::string_view what, Bytes bytes, double begin, double end) override;
  void taken(int rank, std::uint64_t address, Bytes bytes, std::string_view purpose, double time) override;
  void given_back(int rank, std::uint64_t address, Bytes bytes, double time) override;
  void waited(int rank, std::size_t stream, std::string_view what, int last, double begin, double end) override;
  void fault(const Fault& fault, double time) override;
  void finish() { trace_.finish(); }

 private:
  report::TraceWriter trace_;
  std::vector<MemoryByRole> memory_;
};

// Records one rank for a chart of its step.
class MemoryObserver final : public VirtualTrace {
 public:
  explicit MemoryObserver(int rank) : rank_(rank) {}
  void work(int rank, std::size_t stream, std::string_view what, Bytes bytes, double begin, double end) override;
  void taken(int rank, std::uint64_t address, Bytes bytes, std::string_view purpose, double time) override;
  void given_back(int rank, std::uint64_t address, Bytes bytes, double time) override;
  void waited(int, std::size_t, std::string_view, int, double, double) override {}
  void fault(const Fault&, double) override {}

  // Samples, phases and the end, with times from the beginning of the first forward.
  report::MemoryChart chart() const;

 private:
  void sample(double time);

  int rank_;
  MemoryByRole memory_;
  std::vector<report::MemorySample> samples_;
  std::vector<report::MemoryPhase> phases_;
  double end_ = 0;
};

}  // namespace shardplan
