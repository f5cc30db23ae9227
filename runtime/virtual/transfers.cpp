#include "runtime/virtual/transfers.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "runtime/virtual/virtual_time.h"

namespace shardplan {
namespace {

// A whole link. Uses are whole numbers, so that taking and giving back leaves nothing.
constexpr std::uint32_t kWhole = 1U << 16;

std::uint32_t parts(double use) {
  return static_cast<std::uint32_t>(std::lround(std::clamp(use, 0.0, 1.0) * kWhole));
}

}  // namespace

Transfer::Transfer(Transfers& transfers, const std::vector<int>& ranks)
    : transfers_(transfers), links_(ranks.begin(), ranks.end()) {
  for (const int rank : ranks) adapters_.push_back(static_cast<std::uint32_t>(rank / transfers.ranks_per_adapter()));
  std::sort(adapters_.begin(), adapters_.end());
  adapters_.erase(std::unique(adapters_.begin(), adapters_.end()), adapters_.end());
}

Transfer::~Transfer() {
  if (events_ > 0) transfers_.forget(*this);
}

Transfers::Transfers(int ranks, int ranks_per_adapter)
    : ranks_per_adapter_(ranks_per_adapter),
      links_(static_cast<std::size_t>(ranks)),
      adapters_(static_cast<std::size_t>((ranks - 1) / ranks_per_adapter) + 1) {
  const auto most = static_cast<std::size_t>(ranks);
  events_.reserve(2 * most);
  moving_.reserve(most);
  over_.reserve(most);
}

bool Transfers::later(const Event& a, const Event& b) {
  return a.time != b.time ? a.time > b.time : a.number > b.number;
}

void Transfers::set(Transfer& transfer, double time, bool moves) {
  transfer.current_ = ++numbers_;
  ++transfer.events_;
  events_.push_back({time, numbers_, &transfer, moves});
  std::push_heap(events_.begin(), events_.end(), later);
}

void Transfers::begin(Transfer& transfer, const CollectivePrice& price, double factor, double time) {
  const double all = in_ticks(factor * price.seconds);
  const double start = std::min(all, in_ticks(factor * price.start_seconds));
  transfer.link_use_ = parts(price.node_use);
  transfer.adapter_use_ = parts(price.network_use);
  transfer.remaining_ = all - start;
  ++in_flight_;
  const bool shares = transfer.remaining_ > 0 && transfer.link_use_ + transfer.adapter_use_ > 0;
  set(transfer, time + (shares ? start : all), shares);
}

void Transfers::next() {
  SHARDPLAN_CHECK(!idle(), "no collective is on the wire");
  const double time = events_.front().time;
  bool changed = false;
  over_.clear();
  while (!events_.empty() && events_.front().time == time) {
    std::pop_heap(events_.begin(), events_.end(), later);
    const Event event = events_.back();
    events_.pop_back();
    Transfer& transfer = *event.transfer;
    --transfer.events_;
    if (event.number != transfer.current_) continue;
    if (event.moves) {
      move(transfer, time);
      changed = occupy(transfer) || changed;
      continue;
    }
    if (transfer.moving_) release(transfer);
    transfer.moving_ = false;
    over_.push_back(&transfer);
  }
  if (!over_.empty()) std::erase_if(moving_, [](const Transfer* transfer) { return !transfer->moving_; });
  if (changed || (crowded_ && !over_.empty())) share(time);
  in_flight_ -= over_.size();
  for (Transfer* transfer : over_) transfer->ended(time);
}

void Transfers::move(Transfer& transfer, double time) {
  moving_.push_back(&transfer);
  transfer.moving_ = true;
  transfer.updated_ = time;
  transfer.speed_ = 1;
  set(transfer, time + transfer.remaining_, false);
}

// Whether a link of it is now asked for more than it has.
bool Transfers::occupy(const Transfer& transfer) {
  std::uint32_t most = 0;
  for (const std::uint32_t link : transfer.links_) most = std::max(most, links_[link] += transfer.link_use_);
  for (const std::uint32_t link : transfer.adapters_) most = std::max(most, adapters_[link] += transfer.adapter_use_);
  return most > kWhole;
}

void Transfers::release(const Transfer& transfer) {
  for (const std::uint32_t link : transfer.links_) links_[link] -= transfer.link_use_;
  for (const std::uint32_t link : transfer.adapters_) adapters_[link] -= transfer.adapter_use_;
}

double Transfers::speed_of(const Transfer& transfer) const {
  std::uint32_t most = kWhole;
  if (transfer.link_use_ > 0) {
    for (const std::uint32_t link : transfer.links_) most = std::max(most, links_[link]);
  }
  if (transfer.adapter_use_ > 0) {
    for (const std::uint32_t link : transfer.adapters_) most = std::max(most, adapters_[link]);
  }
  return static_cast<double>(kWhole) / most;
}

// What was set for an end that then came later.
void Transfers::forget(const Transfer& transfer) {
  std::erase_if(events_, [&](const Event& event) { return event.transfer == &transfer; });
  std::make_heap(events_.begin(), events_.end(), later);
}

void Transfers::share(double time) {
  crowded_ = false;
  for (Transfer* transfer : moving_) {
    const double speed = speed_of(*transfer);
    crowded_ = crowded_ || speed < 1;
    if (speed == transfer->speed_) continue;
    if (time > transfer->updated_) {
      transfer->remaining_ -= (time - transfer->updated_) * transfer->speed_;
      transfer->updated_ = time;
    }
    transfer->speed_ = speed;
    set(*transfer, transfer->updated_ + in_ticks(std::max(0.0, transfer->remaining_) / speed), false);
  }
}

}  // namespace shardplan
