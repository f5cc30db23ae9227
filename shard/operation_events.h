// The two streams of a rank and the events between them, as planner/operation.h says: an operation waits for those it
// depends on, on whichever stream they are.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "planner/step_plan.h"
#include "runtime/device.h"

namespace shardplan {

class OperationEvents {
 public:
  // Makes the streams, and an event for each operation that another one of the plan waits for.
  OperationEvents(const StepPlan& plan, Device& device);

  Stream& compute() { return *compute_; }
  Stream& communication() { return *communication_; }
  Stream& stream_of(const Operation& operation);

  // Its stream waits for what the operation depends on.
  void before(const Operation& operation);
  // Marks its end on its stream.
  void after(const Operation& operation);
  // Later work on either stream comes after earlier work on both.
  void join();

 private:
  std::size_t index_of(OperationKind kind, Pass pass, std::uint64_t unit) const;

  std::uint64_t units_;
  std::unique_ptr<Stream> compute_;
  std::unique_ptr<Stream> communication_;
  std::unique_ptr<Event> compute_end_;
  std::unique_ptr<Event> communication_end_;
  std::vector<std::unique_ptr<Event>> events_;  // by index_of; null where nobody waits
};

}  // namespace shardplan
