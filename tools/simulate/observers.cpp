#include "tools/simulate/observers.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "tools/simulate/client_memory.h"
#include "tools/simulate/fault_spec.h"

namespace shardplan {
namespace {

constexpr std::size_t kCommunicationStream = 1;
// Of BookedTransfers.
constexpr std::size_t kReadStream = 2;
constexpr std::size_t kWriteStream = 3;

const char* category_of(std::size_t stream) {
  if (stream == kCommunicationStream) return "communication";
  return stream == 0 ? "compute" : "file";
}

report::MemoryClass class_of_role(std::string_view role) {
  if (role == kClientPurpose) return report::MemoryClass::activations;
  for (std::size_t i = 0; i <= static_cast<std::size_t>(BufferRole::partial); ++i) {
    const auto candidate = static_cast<BufferRole>(i);
    if (name(candidate) != role) continue;
    switch (class_of(candidate)) {
      case MemoryClass::parameters:
        return report::MemoryClass::parameters;
      case MemoryClass::gathered_parameters:
        return report::MemoryClass::gathered_parameters;
      case MemoryClass::gradients:
        return report::MemoryClass::gradients;
      case MemoryClass::optimizer_states:
        return report::MemoryClass::optimizer_states;
      case MemoryClass::communication_buffers:
        return report::MemoryClass::communication_buffers;
    }
  }
  SHARDPLAN_CHECK(false, fmt::format("'{}' is no role of a buffer", role));
  return report::MemoryClass::parameters;
}

}  // namespace

void MemoryByRole::taken(std::uint64_t address, Bytes bytes, std::string_view role) {
  if (bytes == Bytes{} || in_virtual_host_memory(address)) return;
  const report::MemoryClass memory_class = class_of_role(role);
  ranges_[address] = {memory_class, bytes};
  now_[memory_class] += bytes;
}

void MemoryByRole::given_back(std::uint64_t address) {
  const auto range = ranges_.find(address);
  if (range == ranges_.end()) return;
  now_[range->second.first] -= range->second.second;
  ranges_.erase(range);
}

void Listeners::work(int rank, std::size_t stream, std::string_view what, Bytes bytes, double begin, double end) {
  for (VirtualTrace* listener : listeners_) listener->work(rank, stream, what, bytes, begin, end);
}
void Listeners::taken(int rank, std::uint64_t address, Bytes bytes, std::string_view purpose, double time) {
  for (VirtualTrace* listener : listeners_) listener->taken(rank, address, bytes, purpose, time);
}
void Listeners::given_back(int rank, std::uint64_t address, Bytes bytes, double time) {
  for (VirtualTrace* listener : listeners_) listener->given_back(rank, address, bytes, time);
}
void Listeners::waited(int rank, std::size_t stream, std::string_view what, int last, double begin, double end) {
  for (VirtualTrace* listener : listeners_) listener->waited(rank, stream, what, last, begin, end);
}
void Listeners::fault(const Fault& fault, double time) {
  for (VirtualTrace* listener : listeners_) listener->fault(fault, time);
}

PerfettoObserver::PerfettoObserver(std::ostream& out, int ranks, bool files)
    : trace_(out), memory_(static_cast<std::size_t>(ranks)) {
  for (int rank = 0; rank < ranks; ++rank) {
    const auto process = static_cast<std::uint32_t>(rank);
    trace_.process(process, fmt::format("rank {}", rank));
    trace_.thread({.rank = process, .stream = 0}, "compute");
    trace_.thread({.rank = process, .stream = kCommunicationStream}, "communication");
    if (!files) continue;
    trace_.thread({.rank = process, .stream = kReadStream}, "file reads");
    trace_.thread({.rank = process, .stream = kWriteStream}, "file writes");
  }
}

void PerfettoObserver::work(int rank, std::size_t stream, std::string_view what, Bytes bytes, double begin,
                            double end) {
  const report::TraceSlice slice{.track = {static_cast<std::uint32_t>(rank), static_cast<std::uint32_t>(stream)},
                                 .name = what,
                                 .category = category_of(stream),
                                 .begin = begin,
                                 .end = end};
  trace_.slice(slice, bytes == Bytes{} ? report::TraceArguments{} : report::TraceArguments{{"bytes", bytes.count()}});
}

void PerfettoObserver::taken(int rank, std::uint64_t address, Bytes bytes, std::string_view purpose, double time) {
  MemoryByRole& memory = memory_[static_cast<std::size_t>(rank)];
  memory.taken(address, bytes, purpose);
  trace_.memory(static_cast<std::uint32_t>(rank), time, memory.now());
}

void PerfettoObserver::given_back(int rank, std::uint64_t address, Bytes, double time) {
  MemoryByRole& memory = memory_[static_cast<std::size_t>(rank)];
  memory.given_back(address);
  trace_.memory(static_cast<std::uint32_t>(rank), time, memory.now());
}

void PerfettoObserver::waited(int rank, std::size_t stream, std::string_view what, int last, double begin, double end) {
  trace_.slice({.track = {static_cast<std::uint32_t>(rank), static_cast<std::uint32_t>(stream)},
                .name = fmt::format("wait for rank {}", last),
                .category = "waiting",
                .begin = begin,
                .end = end},
               {{"collective", what}});
}

void PerfettoObserver::fault(const Fault& fault, double time) {
  trace_.instant({.track = {static_cast<std::uint32_t>(fault.rank), 0}, .seconds = time}, describe(fault),
                 report::InstantScope::process);
}

void MemoryObserver::work(int rank, std::size_t stream, std::string_view what, Bytes, double begin, double end) {
  if (rank != rank_) return;
  end_ = std::max(end_, end);
  const bool phase = stream == 0 && (what == name(Pass::forward) || what == name(Pass::backward) || what == "update");
  if (!phase) return;
  if (phases_.empty() || phases_.back().name != what) phases_.push_back({std::string(what), begin, end});
  phases_.back().end = end;
}

void MemoryObserver::sample(double time) {
  if (!samples_.empty() && samples_.back().seconds == time) {
    // The most that is held at one instant is what it must have room for.
    if (memory_.now().total() >= samples_.back().bytes.total()) samples_.back().bytes = memory_.now();
    return;
  }
  samples_.push_back({time, memory_.now()});
}

void MemoryObserver::taken(int rank, std::uint64_t address, Bytes bytes, std::string_view purpose, double time) {
  if (rank != rank_) return;
  memory_.taken(address, bytes, purpose);
  sample(time);
}

// Arrays that end with the optimizer are not of the step.
void MemoryObserver::given_back(int rank, std::uint64_t address, Bytes, double time) {
  if (rank != rank_) return;
  memory_.given_back(address);
  if (time < end_ || phases_.empty()) sample(time);
}

report::MemoryChart MemoryObserver::chart() const {
  report::MemoryChart chart;
  const double start = phases_.empty() ? 0 : phases_.front().begin;
  for (const report::MemorySample& sample : samples_) {
    const double seconds = std::max(0.0, sample.seconds - start);
    if (!chart.samples.empty() && chart.samples.back().seconds == seconds) {
      chart.samples.back().bytes = sample.bytes;
    } else {
      chart.samples.push_back({seconds, sample.bytes});
    }
  }
  for (const report::MemoryPhase& phase : phases_) {
    chart.phases.push_back({phase.name, phase.begin - start, phase.end - start});
  }
  chart.end_seconds = end_ - start;
  return chart;
}

}  // namespace shardplan
