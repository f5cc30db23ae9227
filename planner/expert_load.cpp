#include "planner/expert_load.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {
namespace {

double as_double(std::uint64_t count) {
  return static_cast<double>(count);
}

}  // namespace

std::string words(const ExpertLoad& load) {
  if (load.padded && load.capacity_factor) return fmt::format("padded to {:g} even shares", *load.capacity_factor);
  std::string text = load.imbalance == 1          ? "even"
                     : std::isinf(load.imbalance) ? "the worst case"
                                                  : fmt::format("at most {:g} even shares", load.imbalance);
  if (load.capacity_factor) text += fmt::format(", dropped beyond {:g} even shares", *load.capacity_factor);
  return text;
}

std::uint64_t pairs_of_first(std::uint64_t some, const Choices& c, const ExpertLoad& load) {
  SHARDPLAN_CHECK(c.chosen <= c.experts && some <= c.experts, "of the experts there are");
  if (some == 0) return 0;
  std::uint64_t most = checked_multiply(checked_multiply(c.tokens, c.senders), std::min(some, c.chosen));
  if (load.capacity_factor) {
    // Megatron-LM moe_utils.py, get_capacity: of each expert, and each rank that sends.
    const double share = as_double(c.tokens) * as_double(c.chosen) / as_double(c.experts);
    const double capacity = std::ceil(share * *load.capacity_factor);
    constexpr double kMost = 1e15;  // too many for any memory, and still a whole number
    const auto taken = [&](double of_each) {
      return checked_multiply(checked_multiply(some, c.senders), static_cast<std::uint64_t>(of_each));
    };
    if (load.padded) return taken(std::min(capacity, kMost));
    most = std::min(most, taken(std::min(capacity, as_double(c.tokens))));
  }
  const double pairs = as_double(checked_multiply(checked_multiply(c.tokens, c.senders), c.chosen));
  const double share = std::floor(load.imbalance * (as_double(some) * pairs) / as_double(c.experts));
  return share < as_double(most) ? static_cast<std::uint64_t>(share) : most;
}

double load_of_rank(std::uint64_t ranks, std::uint64_t experts, std::uint64_t chosen, const ExpertLoad& load) {
  if (load.padded && load.capacity_factor) return *load.capacity_factor;
  const double mine = as_double(experts) / as_double(ranks);
  const double worst = std::min(mine, as_double(chosen)) * as_double(ranks) / as_double(chosen);
  return std::min({load.imbalance, worst, load.capacity_factor.value_or(load.imbalance)});
}

}  // namespace shardplan
