// What a search has found: the set-ups that fit, and those that do not, counted and with their reasons.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tools/memcalc/evaluator.h"
#include "tools/memcalc/fitting.h"

namespace shardplan::memcalc {

class Findings {
 public:
  Findings(const FitOptions& question, Fit& fit) : question_(question), fit_(fit) {}

  // `count` set-ups are rejected for this reason, the first of them `options`. Reasons that come first are kept, each with the first
  // set-up of which it was said.
  void reject(const PlanOptions& options, Rejection reason, std::string why, std::uint64_t count = 1);
  void reject(const PlanOptions& options, Bytes needed);
  // One that fits. `instead_of`: what the set-up as it is given needs, which this one is compared with.
  void accept(const PlanOptions& options, Bytes needed, const StepTime& time, std::string change = {},
              std::optional<Bytes> instead_of = {});
  // Set-ups that are slower than enough others that fit; whether they fit is of no interest.
  void leave_slower(std::uint64_t count);

  Fit& fit() { return fit_; }
  Bytes capacity() const { return fit_.gpu.bytes; }

 private:
  const FitOptions& question_;
  Fit& fit_;
};

}  // namespace shardplan::memcalc
