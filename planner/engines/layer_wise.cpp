#include "planner/engines/layer_wise.h"

#include <algorithm>
#include <numeric>

#include "base/checked.h"

namespace shardplan {
namespace {

constexpr std::uint64_t kStart = 64;  // param_layout.py, pad_param_start

std::uint64_t elements(const WholeMatrix& matrix) {
  return checked_multiply(matrix.rows, matrix.columns);
}

// Of Newton-Schulz: the larger side x the smaller one squared.
std::uint64_t cost(const WholeMatrix& matrix) {
  return checked_multiply(elements(matrix), std::min(matrix.rows, matrix.columns));
}

std::size_t index_of_least(const std::vector<std::uint64_t>& values) {
  return static_cast<std::size_t>(std::min_element(values.begin(), values.end()) - values.begin());
}

class Layout {
 public:
  Layout(std::uint64_t ranks, std::optional<std::uint64_t> bucket_size, bool bus_padding)
      : ranks_(ranks), bucket_size_(bucket_size), loads_(ranks), placed_(ranks), work_(ranks), updated_(ranks) {
    const std::uint64_t end = std::lcm(std::lcm(ranks, std::uint64_t{128}), std::uint64_t{bus_padding ? 65536U : 1U});
    shard_multiple_ = std::lcm(kStart, end / ranks);
  }

  void add(const WholeMatrix& matrix) {
    const std::uint64_t count = elements(matrix);
    if (full() && !absorbs(count)) close();
    const std::size_t rank = index_of_least(placed_);
    placed_[rank] = checked_add(round_up(placed_[rank], kStart), count);
    open_.push_back(matrix);
    open_elements_ = checked_add(open_elements_, count);
    largest_ = std::max(largest_, count);
  }

  // Ends the bucket that is open.
  void close() {
    if (open_.empty()) return;
    share_out();
    result_.padded_elements = checked_add(
        result_.padded_elements,
        checked_multiply(ranks_, round_up(*std::max_element(loads_.begin(), loads_.end()), shard_multiple_)));
    ++result_.buckets;
    open_.clear();
    open_elements_ = largest_ = 0;
    std::fill(placed_.begin(), placed_.end(), 0);
    std::fill(loads_.begin(), loads_.end(), 0);
  }

  LayerWiseLayout finish() {
    close();
    result_.most_elements = *std::max_element(updated_.begin(), updated_.end());
    return result_;
  }

 private:
  bool full() const {
    if (!bucket_size_ || open_.empty()) return false;
    const auto floor = static_cast<std::uint64_t>(static_cast<double>(checked_multiply(ranks_, largest_)) * 0.9);
    return open_elements_ >= std::max(*bucket_size_, floor);
  }

  bool absorbs(std::uint64_t count) const {
    const std::uint64_t target = round_up(*std::max_element(placed_.begin(), placed_.end()), shard_multiple_);
    return checked_add(round_up(*std::min_element(placed_.begin(), placed_.end()), kStart), count) <= target;
  }

  void share_out() {
    std::uint64_t all = 0;
    for (const WholeMatrix& matrix : open_) all = checked_add(all, elements(matrix));
    const double room = static_cast<double>(all) / static_cast<double>(ranks_) * 1.3;
    std::stable_sort(open_.begin(), open_.end(),
                     [](const WholeMatrix& a, const WholeMatrix& b) { return cost(a) > cost(b); });
    for (const WholeMatrix& matrix : open_) {
      const std::size_t rank = rank_for(elements(matrix), room);
      loads_[rank] = checked_add(round_up(loads_[rank], kStart), elements(matrix));
      work_[rank] = checked_add(work_[rank], cost(matrix));
      updated_[rank] = checked_add(updated_[rank], elements(matrix));
      result_.elements = checked_add(result_.elements, elements(matrix));
    }
  }

  std::size_t rank_for(std::uint64_t count, double room) const {
    std::optional<std::size_t> least;
    for (std::size_t rank = 0; rank < loads_.size(); ++rank) {
      if (static_cast<double>(checked_add(round_up(loads_[rank], kStart), count)) > room) continue;
      if (!least || work_[rank] < work_[*least]) least = rank;
    }
    return least ? *least : index_of_least(loads_);
  }

  std::uint64_t ranks_;
  std::optional<std::uint64_t> bucket_size_;
  std::uint64_t shard_multiple_ = kStart;
  std::vector<WholeMatrix> open_;
  std::uint64_t open_elements_ = 0;
  std::uint64_t largest_ = 0;
  std::vector<std::uint64_t> loads_;    // of the bucket that is being shared out
  std::vector<std::uint64_t> placed_;   // what the open bucket would hold, in the order it is filled
  std::vector<std::uint64_t> work_;     // of all buckets
  std::vector<std::uint64_t> updated_;  // of all buckets
  LayerWiseLayout result_;
};

}  // namespace

LayerWiseLayout layer_wise_layout(const std::vector<WholeMatrix>& matrices, std::uint64_t ranks,
                                  std::optional<std::uint64_t> bucket_size, bool bus_padding) {
  Layout layout(ranks, bucket_size, bus_padding);
  std::for_each(matrices.rbegin(), matrices.rend(), [&](const WholeMatrix& matrix) { layout.add(matrix); });
  return layout.finish();
}

}  // namespace shardplan
