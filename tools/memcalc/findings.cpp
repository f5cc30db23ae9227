#include "tools/memcalc/findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/text.h"

namespace shardplan::memcalc {

void Findings::reject(const PlanOptions& options, Rejection reason, std::string why, std::uint64_t count) {
  if (count == 0) return;
  fit_.decided += count;
  fit_.rejections += count;
  fit_.rejections_by_reason[static_cast<std::size_t>(reason)] += count;
  const auto same = std::find_if(fit_.rejected.begin(), fit_.rejected.end(),
                                 [&](const RejectedPlan& known) { return known.why == why; });
  if (same != fit_.rejected.end()) {
    same->count += count;
    return;
  }
  if (fit_.rejected.size() < question_.most_rejected) {
    fit_.rejected.push_back({.options = options, .why = std::move(why), .count = count});
  }
}

void Findings::reject(const PlanOptions& options, Bytes needed) {
  reject(options, Rejection::memory,
         fmt::format("needs {}, {} more than the GPU has", in_gb(needed), in_gb(needed - capacity())));
}

void Findings::accept(const PlanOptions& options, Bytes needed, const StepTime& time, std::string change,
                      std::optional<Bytes> instead_of) {
  ++fit_.decided;
  const auto sequences =
      static_cast<double>(options.micro_batch * options.setup.accumulation * data_parallel(options.setup));
  FittedPlan plan{.options = options,
                  .needed = needed,
                  .time = time,
                  .change = std::move(change),
                  .saved = {},
                  .sequences_per_second = sequences / time.seconds()};
  if (instead_of) plan.saved = signed_difference(*instead_of, needed);
  fit_.plans.push_back(std::move(plan));
}

void Findings::leave_slower(std::uint64_t count) {
  fit_.decided += count;
  fit_.slower += count;
}

}  // namespace shardplan::memcalc
