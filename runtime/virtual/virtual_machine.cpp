#include "runtime/virtual/virtual_machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace shardplan {

std::string_view name(FaultKind kind) {
  switch (kind) {
    case FaultKind::kill:
      return "kill";
    case FaultKind::stall:
      return "stall";
    case FaultKind::slow_rank:
      return "slow-rank";
    case FaultKind::slow_link:
      return "slow-link";
    case FaultKind::drop:
      return "drop";
    case FaultKind::corrupt:
      return "corrupt";
    case FaultKind::out_of_memory:
      return "out-of-memory";
  }
  SHARDPLAN_CHECK(false, "an unknown kind of fault");
  return {};
}

VirtualClock::VirtualClock(const VirtualOptions& options, int rank) : options_(options), rank_(rank) {
  for (std::size_t i = 0; i < options.faults.size(); ++i) {
    if (options.faults[i].rank == rank) faults_.push_back(i);
  }
}

void VirtualClock::operation(bool collective) {
  ++outcome.operations;
  if (collective) ++outcome.collectives;
  message_fault_ = nullptr;
  for (const std::size_t i : faults_) {
    const Fault& fault = options_.faults[i];
    const bool of_message = fault.kind == FaultKind::drop || fault.kind == FaultKind::corrupt;
    if (of_message ? collective && fault.operation == outcome.collectives : fault.operation == outcome.operations) {
      apply(i);
    }
  }
}

void VirtualClock::apply(std::size_t index) {
  const Fault& fault = options_.faults[index];
  if (fault.kind == FaultKind::out_of_memory) return;  // the device's
  outcome.faults.push_back(index);
  if (options_.trace != nullptr) options_.trace->fault(fault, now_);
  switch (fault.kind) {
    case FaultKind::kill:
      killed_ = true;
      throw Killed{};
    case FaultKind::stall:
      wait_until(now_ + in_ticks(fault.seconds));
      break;
    case FaultKind::slow_rank:
      kernel_factor_ = fault.factor;
      break;
    case FaultKind::slow_link:
      link_factor_ = fault.factor;
      break;
    case FaultKind::drop:
    case FaultKind::corrupt:
      message_fault_ = &fault;
      break;
    case FaultKind::out_of_memory:
      break;
  }
}

void VirtualClock::ran_out_of_memory() {
  for (const std::size_t i : faults_) {
    if (options_.faults[i].kind != FaultKind::out_of_memory) continue;
    if (std::find(outcome.faults.begin(), outcome.faults.end(), i) != outcome.faults.end()) continue;
    outcome.faults.push_back(i);
    if (options_.trace != nullptr) options_.trace->fault(options_.faults[i], now_);
  }
}

void VirtualClock::communicated(double called, double begin, double end) {
  outcome.communication_seconds += end - begin;
  collectives_.add(called, begin, end, first_stream_);
}

void VirtualClock::stand_still_until(double time) {
  if (time <= first_stream_) return;
  const StandStill parts = collectives_.parts(first_stream_, time);
  outcome.exposed_seconds += parts.exposed;
  outcome.waiting_seconds += parts.waiting;
  outcome.idle_seconds += parts.idle;
  first_stream_ = time;
}

void VirtualClock::work_until(double time) {
  outcome.computing_seconds += time - first_stream_;
  first_stream_ = time;
}

namespace {

VirtualOptions checked(VirtualOptions options) {
  SHARDPLAN_CHECK(options.ranks >= 1 && options.ranks_per_node >= 1 && options.ranks_per_adapter >= 1,
                  "a virtual world has ranks, nodes and adapters");
  SHARDPLAN_CHECK(options.costs != nullptr, "a virtual world has costs");
  return options;
}

}  // namespace

VirtualMachine::VirtualMachine(const VirtualOptions& options)
    : options_(checked(options)),
      turns_(options.threads ? make_thread_turns() : make_fiber_turns(options.stack_kib * 1024)),
      waits_(static_cast<std::size_t>(options.ranks)),
      transfers_(options.ranks, options.ranks_per_adapter) {
  for (int rank = 0; rank < options.ranks; ++rank) clocks_.push_back(std::make_unique<VirtualClock>(options_, rank));
}

std::uint64_t VirtualMachine::next_address(MemoryTier tier, Bytes bytes) {
  constexpr std::uint64_t page = 4096;
  std::uint64_t& next = tier == MemoryTier::device ? next_address_ : next_host_address_;
  const std::uint64_t address = next;
  next += (bytes.count() / page + 1) * page;
  return address;
}

void VirtualMachine::run(const Turns::Body& body) {
  turns_->run(options_.ranks, body, [this] { go_on(); });
}

void VirtualMachine::poison(int world_rank, const std::string& operation, const std::string& problem, double time) {
  if (failure_) return;
  failure_ = Failure{world_rank, operation, problem, time};
  for (std::size_t rank = 0; rank < waits_.size(); ++rank) {
    if (std::exchange(waits_[rank].place, nullptr) != nullptr) wake(static_cast<int>(rank));
  }
}

void VirtualMachine::throw_if_poisoned(int rank) {
  if (!failure_) return;
  clock(rank).wait_until(failure_->time);
  throw CommunicationError(failure_->rank, failure_->operation, options_.deadline, failure_->problem);
}

void VirtualMachine::wait(int rank, const char* operation, double since, const MeetingPlace* place) {
  waits_[static_cast<std::size_t>(rank)] = {operation, since, place};
  turns_->block(rank);
}

// Nobody can go on before what is on the wire has; or, where nothing is, before a deadline.
void VirtualMachine::go_on() {
  if (transfers_.idle()) {
    expire();
  } else {
    transfers_.next();
  }
}

// The wait for a peer that began first ends at its deadline.
void VirtualMachine::expire() {
  const Wait* first = nullptr;
  for (const Wait& wait : waits_) {
    if (wait.place != nullptr && (first == nullptr || wait.since < first->since)) first = &wait;
  }
  SHARDPLAN_CHECK(first != nullptr, "no rank is ready, and none waits");
  poison(first->place->missing(), first->operation, "did not arrive before the deadline",
         first->since + in_ticks(options_.deadline));
}

}  // namespace shardplan
