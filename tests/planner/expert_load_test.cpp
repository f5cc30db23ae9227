#include "planner/expert_load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace shardplan {
namespace {

constexpr double kWorst = std::numeric_limits<double>::infinity();

std::vector<std::uint64_t> of_each(const Choices& choices, const ExpertLoad& load) {
  std::vector<std::uint64_t> pairs;
  for (std::uint64_t i = 0; i < choices.experts; ++i)
    pairs.push_back(pairs_of_first(i + 1, choices, load) - pairs_of_first(i, choices, load));
  return pairs;
}

// A token cannot choose an expert twice, nothing is lost, and no expert gets more than was said: whatever the sizes.
TEST(ExpertLoad, SharesOutEveryChoice) {
  for (std::uint64_t experts = 1; experts <= 9; ++experts) {
    for (std::uint64_t chosen = 1; chosen <= experts; ++chosen) {
      for (std::uint64_t tokens = 1; tokens <= 60; tokens += 7) {
        for (const double imbalance : {1.0, 1.1, 1.7, 3.0, kWorst}) {
          const Choices choices{.experts = experts, .chosen = chosen, .tokens = tokens};
          std::uint64_t sum = 0;
          const double share = static_cast<double>(tokens * chosen) / static_cast<double>(experts);
          for (const std::uint64_t pairs : of_each(choices, {.imbalance = imbalance})) {
            EXPECT_LE(pairs, tokens);
            EXPECT_LT(static_cast<double>(pairs), imbalance * share + 1);
            sum += pairs;
          }
          EXPECT_EQ(sum, tokens * chosen) << experts << " " << chosen << " " << tokens << " " << imbalance;
        }
      }
    }
  }
}

TEST(ExpertLoad, EvenSharesDifferByOne) {
  const std::vector<std::uint64_t> pairs = of_each({.experts = 8, .chosen = 2, .tokens = 17}, {});
  EXPECT_EQ(*std::max_element(pairs.begin(), pairs.end()), 5U);
  EXPECT_EQ(*std::min_element(pairs.begin(), pairs.end()), 4U);
}

TEST(ExpertLoad, TheMostChosenComeFirst) {
  const Choices choices{.experts = 5, .chosen = 2, .tokens = 40};
  EXPECT_EQ(of_each(choices, {.imbalance = 1.5}), (std::vector<std::uint64_t>{24, 24, 24, 8, 0}));
  EXPECT_EQ(of_each(choices, {.imbalance = kWorst}), (std::vector<std::uint64_t>{40, 40, 0, 0, 0}));
}

// ceil(tokens x chosen / experts x factor) of each expert and each rank that sends (Megatron-LM, get_capacity).
TEST(ExpertLoad, CapacityDropsAndPads) {
  const Choices choices{.experts = 8, .chosen = 2, .tokens = 30, .senders = 4};
  EXPECT_EQ(pairs_of_first(2, choices, {.imbalance = kWorst}), 240U);
  EXPECT_EQ(pairs_of_first(2, choices, {.imbalance = kWorst, .capacity_factor = 1.25}), 2U * 4 * 10);
  EXPECT_EQ(pairs_of_first(2, choices, {.capacity_factor = 1.25}), 60U) << "even shares are below it";
  EXPECT_EQ(pairs_of_first(2, choices, {.capacity_factor = 1.25, .padded = true}), 80U) << "whoever chose it";
  EXPECT_EQ(pairs_of_first(2, choices, {.imbalance = kWorst, .capacity_factor = 1e30}), 240U) << "nothing is dropped";
  EXPECT_EQ(pairs_of_first(2, choices, {.capacity_factor = 0.5}), 2U * 4 * 4) << "half of the tokens are dropped";
}

// What one rank computes, of many tokens, is the count's limit.
TEST(ExpertLoad, LoadOfARankIsItsPairsOverItsShare) {
  for (const std::uint64_t ranks : {1U, 2U, 4U, 16U}) {
    for (const double imbalance : {1.0, 1.5, 4.0, kWorst}) {
      for (const bool padded : {false, true}) {
        for (const double capacity : {0.5, 1.25, 100.0}) {
          const ExpertLoad load{.imbalance = imbalance, .capacity_factor = capacity, .padded = padded};
          const Choices choices{.experts = 16, .chosen = 4, .tokens = 1 << 20, .senders = ranks};
          const double pairs = static_cast<double>(pairs_of_first(16 / ranks, choices, load));
          EXPECT_NEAR(load_of_rank(ranks, 16, 4, load), pairs / (4.0 * (1 << 20)), 1e-5);
        }
      }
    }
  }
  EXPECT_EQ(load_of_rank(4, 16, 4, {.imbalance = kWorst}), 4.0) << "every token's four are on one rank";
  EXPECT_EQ(load_of_rank(16, 16, 4, {.imbalance = kWorst}), 4.0) << "one of every token's four is";
  EXPECT_EQ(load_of_rank(1, 16, 4, {.imbalance = kWorst}), 1.0) << "a rank with all experts computes as much as ever";
}

TEST(ExpertLoad, Words) {
  EXPECT_EQ(words(ExpertLoad{}), "even");
  EXPECT_EQ(words(ExpertLoad{.imbalance = 1.5}), "at most 1.5 even shares");
  EXPECT_EQ(words(ExpertLoad{.imbalance = kWorst, .capacity_factor = 1.25}),
            "the worst case, dropped beyond 1.25 even shares");
  EXPECT_EQ(words(ExpertLoad{.capacity_factor = 2, .padded = true}), "padded to 2 even shares");
}

}  // namespace
}  // namespace shardplan
