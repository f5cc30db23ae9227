// Bytes and seconds of this rank since the last step.
#pragma once

#include <chrono>

#include "base/bytes.h"

namespace shardplan {

class TrafficMeter {
 public:
  // Adds the time from its construction to its destruction to `seconds`.
  class Timer {
   public:
    explicit Timer(double& seconds) : seconds_(seconds), start_(std::chrono::steady_clock::now()) {}
    ~Timer() { seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

   private:
    double& seconds_;
    std::chrono::steady_clock::time_point start_;
  };

  Timer communication() { return Timer(communication_seconds_); }
  Timer update() { return Timer(update_seconds_); }
  void add_sent(Bytes bytes) { sent_ += bytes; }

  Bytes sent() const { return sent_; }
  double communication_seconds() const { return communication_seconds_; }
  double update_seconds() const { return update_seconds_; }
  void reset() { *this = TrafficMeter{}; }

 private:
  Bytes sent_;
  double communication_seconds_ = 0;
  double update_seconds_ = 0;
};

}  // namespace shardplan
