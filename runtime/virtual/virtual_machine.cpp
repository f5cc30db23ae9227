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
  for (const Fault& fault : options.faults) {
    if (fault.rank == rank) faults_.push_back(fault);
  }
}

void VirtualClock::operation(bool collective) {
  ++outcome.operations;
  if (collective) ++collectives_;
  message_fault_ = nullptr;
  for (const Fault& fault : faults_) {
    const bool of_message = fault.kind == FaultKind::drop || fault.kind == FaultKind::corrupt;
    if (of_message ? collective && fault.operation == collectives_ : fault.operation == outcome.operations) {
      apply(fault);
    }
  }
}

void VirtualClock::apply(const Fault& fault) {
  if (options_.trace != nullptr) options_.trace->fault(fault, now_);
  switch (fault.kind) {
    case FaultKind::kill:
      killed_ = true;
      throw Killed{};
    case FaultKind::stall:
      wait_until(now_ + fault.seconds);
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
      break;  // the device's
  }
}

VirtualMachine::VirtualMachine(const VirtualOptions& options)
    : options_(options), turns_(options.threads ? make_thread_turns() : make_fiber_turns(options.stack_kib * 1024)) {
  SHARDPLAN_CHECK(options.ranks >= 1 && options.ranks_per_node >= 1 && options.costs != nullptr,
                  "a virtual world has ranks, nodes and costs");
  for (int rank = 0; rank < options.ranks; ++rank) clocks_.push_back(std::make_unique<VirtualClock>(options_, rank));
}

std::uint64_t VirtualMachine::next_address(Bytes bytes) {
  constexpr std::uint64_t page = 4096;
  const std::uint64_t address = next_address_;
  next_address_ += (bytes.count() / page + 1) * page;
  return address;
}

void VirtualMachine::poison(int world_rank, const std::string& operation, const std::string& problem, double time) {
  if (failure_) return;
  failure_ = Failure{world_rank, operation, problem, time};
  const auto waiting = std::exchange(waiting_, {});
  for (const auto& [rank, what] : waiting) turns_->wake(rank);
}

void VirtualMachine::throw_if_poisoned(int rank) {
  if (!failure_) return;
  clock(rank).wait_until(failure_->time);
  throw CommunicationError(failure_->rank, failure_->operation, options_.deadline, failure_->problem);
}

void VirtualMachine::wait(int rank, Waiting waiting) {
  waiting_[rank] = std::move(waiting);
  turns_->block(rank);
}

void VirtualMachine::wake(int rank) {
  waiting_.erase(rank);
  turns_->wake(rank);
}

void VirtualMachine::expire() {
  SHARDPLAN_CHECK(!waiting_.empty(), "no rank is ready, and none waits");
  const auto first = std::min_element(waiting_.begin(), waiting_.end(),
                                      [](const auto& a, const auto& b) { return a.second.since < b.second.since; });
  const Waiting waiting = first->second;
  const double deadline = std::chrono::duration<double>(options_.deadline).count();
  poison(waiting.missing(), waiting.operation, "did not arrive before the deadline", waiting.since + deadline);
}

}  // namespace shardplan
