#include "offload/recording_tier.h"

#include <algorithm>
#include <iterator>

namespace shardplan {

RecordingTier::Report RecordingTier::report() const {
  const std::scoped_lock lock(mutex_);
  Report report;
  for (const auto& [begin, end] : written_) {
    report.live += Bytes{end - begin};
    report.high_water = Bytes{end};
  }
  return report;
}

void RecordingTier::write(std::uint64_t offset, std::span<const std::byte> from) {
  inner_->write(offset, from);
  if (from.empty()) return;
  const std::scoped_lock lock(mutex_);
  std::uint64_t begin = offset;
  std::uint64_t end = offset + from.size();
  auto next = written_.upper_bound(begin);
  if (next != written_.begin() && std::prev(next)->second >= begin) --next;
  if (next != written_.end() && next->first <= begin && next->second >= end) return;  // all of it has been
  while (next != written_.end() && next->first <= end) {
    begin = std::min(begin, next->first);
    end = std::max(end, next->second);
    next = written_.erase(next);
  }
  written_.emplace(begin, end);
}

}  // namespace shardplan
