#include "planner/cost/collective.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <cmath>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr CollectiveKind kSharded[] = {CollectiveKind::all_gather, CollectiveKind::reduce_scatter,
                                       CollectiveKind::all_reduce};
constexpr Algorithm kAlgorithms[] = {Algorithm::ring, Algorithm::tree, Algorithm::hierarchical};

// Round numbers: 100 GB/s and 1 us in a node, 10 GB/s and 10 us between nodes, 5 us to begin with.
Cluster round_cluster() {
  Cluster cluster;
  cluster.gpus_per_node = 8;
  cluster.node = {100e9, 1, 1e-6};
  cluster.network = {20e9, 0.5, 10e-6};
  cluster.collective_seconds = 5e-6;
  return cluster;
}

RC_GTEST_PROP(Collective, BytesOfAllLinksAreRanksTimesWhatOneSends, ()) {
  const Group group{*rc::gen::inRange<std::uint64_t>(1, 17), *rc::gen::inRange<std::uint64_t>(1, 65)};
  const Bytes shard{*rc::gen::inRange<std::uint64_t>(0, 1 << 30)};
  const std::uint64_t n = group.ranks();
  for (const CollectiveKind kind : kSharded) {
    const std::uint64_t passes = kind == CollectiveKind::all_reduce ? 2 : 1;
    for (const Algorithm algorithm : kAlgorithms) {
      const CollectiveCost cost = cost_of(kind, shard, group, round_cluster(), algorithm);
      RC_ASSERT(cost.sent.sum() == n * (passes * (n - 1) * shard));
      if (group.nodes == 1) RC_ASSERT(cost.sent.network == Bytes{0});
      if (group.ranks_per_node == 1) RC_ASSERT(cost.sent.node == Bytes{0});
    }
  }
  RC_ASSERT(cost_of(CollectiveKind::all_to_all, shard, group, round_cluster()).sent.sum() == n * ((n - 1) * shard));
}

RC_GTEST_PROP(Collective, FastestIsTheFastestAndMoreBytesNeverTakeLess, ()) {
  const Group group{*rc::gen::inRange<std::uint64_t>(1, 17), *rc::gen::inRange<std::uint64_t>(1, 65)};
  RC_PRE(group.ranks() > 1);
  const Bytes shard{*rc::gen::inRange<std::uint64_t>(0, 1 << 28)};
  const Cluster cluster = round_cluster();
  for (const CollectiveKind kind : kSharded) {
    const CollectiveCost best = cost_of(kind, shard, group, cluster);
    for (const Algorithm algorithm : kAlgorithms) {
      RC_ASSERT(best.seconds <= cost_of(kind, shard, group, cluster, algorithm).seconds);
    }
    RC_ASSERT(best == cost_of(kind, shard, group, cluster, best.algorithm));
    RC_ASSERT(best.seconds <= cost_of(kind, shard + 1_B, group, cluster).seconds);
    RC_ASSERT(best.seconds <= cost_of(kind, shard, group, cluster, Algorithm::fastest, {2, 2}).seconds);
  }
}

TEST(Collective, OneRankCostsNothing) {
  EXPECT_EQ(cost_of(CollectiveKind::all_reduce, 1_GB, {1, 1}, round_cluster()), CollectiveCost{});
}

TEST(Collective, RingInsideANode) {
  // 7 steps of 1 us; 7 x 100 MB over 100 GB/s.
  const CollectiveCost gather = cost_of(CollectiveKind::all_gather, 100_MB, {8, 1}, round_cluster(), Algorithm::ring);
  EXPECT_NEAR(gather.seconds, 5e-6 + 7e-6 + 7e-3, 1e-12);
  EXPECT_EQ(gather.sent, (LinkBytes{56 * 100_MB, 0_B}));
  const CollectiveCost reduce = cost_of(CollectiveKind::all_reduce, 100_MB, {8, 1}, round_cluster(), Algorithm::ring);
  EXPECT_NEAR(reduce.seconds, 5e-6 + 14e-6 + 14e-3, 1e-12);
}

TEST(Collective, RingsShareTheAdaptersOfANode) {
  // Out of a node of 8: 80 GB/s. Of 15 steps one goes between the nodes.
  const CollectiveCost gather = cost_of(CollectiveKind::all_gather, 100_MB, {8, 2}, round_cluster(), Algorithm::ring);
  EXPECT_NEAR(gather.seconds, 5e-6 + 14e-6 + 10e-6 + 15 * 100e6 / 80e9, 1e-12);
  EXPECT_EQ(gather.sent.network, 2 * 15 * 100_MB);
  EXPECT_EQ(gather.sent.node, 14 * 15 * 100_MB);
}

TEST(Collective, ReplicasOfAShardMeetOverTheNetworkAlone) {
  const CollectiveCost reduce = cost_of(CollectiveKind::all_reduce, 100_MB, {1, 4}, round_cluster(), Algorithm::ring);
  EXPECT_NEAR(reduce.seconds, 5e-6 + 60e-6 + 6 * 100e6 / 10e9, 1e-12);
  EXPECT_EQ(reduce.sent, (LinkBytes{0_B, 24 * 100_MB}));
}

TEST(Collective, TwoLevelsSendLessOverTheNetwork) {
  const Group group{8, 4};
  const CollectiveCost ring = cost_of(CollectiveKind::all_reduce, 1_MB, group, round_cluster(), Algorithm::ring);
  const CollectiveCost levels =
      cost_of(CollectiveKind::all_reduce, 1_MB, group, round_cluster(), Algorithm::hierarchical);
  // 2 (8 - 1) 4 shards in the node, 2 (4 - 1) across, per rank.
  EXPECT_EQ(levels.sent, (LinkBytes{32 * 56 * 1_MB, 32 * 6 * 1_MB}));
  EXPECT_NEAR(levels.seconds, 5e-6 + 14e-6 + 60e-6 + 56e6 / 100e9 + 6e6 / 10e9, 1e-12);
  EXPECT_EQ(ring.sent.network, 4 * 62 * 1_MB);
  EXPECT_EQ(ring.sent.sum(), levels.sent.sum());
}

TEST(Collective, SmallOnesTakeTreesAndLargeOnesRings) {
  const Group group{8, 128};
  const CollectiveCost small = cost_of(CollectiveKind::all_reduce, 16_B, group, round_cluster());
  EXPECT_EQ(small.algorithm, Algorithm::tree);
  EXPECT_NEAR(small.seconds, 5e-6 + 2 * (7e-6 + 7 * 10e-6), 1e-6);
  EXPECT_EQ(cost_of(CollectiveKind::all_reduce, 10_MB, group, round_cluster()).algorithm, Algorithm::ring);
  // Recursive doubling: 3 rounds inside, 7 between.
  const CollectiveCost gather = cost_of(CollectiveKind::all_gather, 0_B, group, round_cluster(), Algorithm::tree);
  EXPECT_NEAR(gather.seconds, 5e-6 + 3e-6 + 70e-6, 1e-12);
}

TEST(Collective, WhatOverlapsSharesALink) {
  const auto seconds = [](const Contention& contention) {
    return cost_of(CollectiveKind::all_gather, 100_MB, {8, 1}, round_cluster(), Algorithm::ring, contention).seconds;
  };
  EXPECT_NEAR(seconds({3, 1}) - seconds({1, 1}), 2 * 7e-3, 1e-12);
  EXPECT_EQ(seconds({1, 9}), seconds({1, 1}));
}

// Bytes are what others make slower, and what more of an adapter makes faster; latencies stay.
TEST(Collective, SecondsAreLatenciesAndBytes) {
  const auto cost = [](const Contention& contention) {
    return cost_of(CollectiveKind::all_gather, 100_MB, {1, 4}, round_cluster(), Algorithm::ring, contention);
  };
  const double latencies = cost({}).seconds - cost({}).byte_seconds;
  EXPECT_NEAR(latencies, 5e-6 + 3 * 10e-6, 1e-12);
  EXPECT_NEAR(cost({.network = 0.125}).byte_seconds, cost({}).byte_seconds / 8, 1e-12);
  EXPECT_NEAR(cost({.network = 0.125}).seconds - cost({.network = 0.125}).byte_seconds, latencies, 1e-12);
  EXPECT_EQ(cost({}).sent, cost({.network = 0.125}).sent);
}

TEST(Collective, AllToAllIsDirect) {
  const CollectiveCost cost = cost_of(CollectiveKind::all_to_all, 1_MB, {8, 2}, round_cluster());
  EXPECT_EQ(cost.algorithm, Algorithm::direct);
  EXPECT_EQ(cost.sent, (LinkBytes{16 * 7 * 1_MB, 16 * 8 * 1_MB}));
  EXPECT_NEAR(cost.seconds, 5e-6 + 7e-6 + 80e-6 + 8e6 / 10e9, 1e-12);
  EXPECT_THROW(cost_of(CollectiveKind::all_to_all, 1_MB, {8, 2}, round_cluster(), Algorithm::ring), ConfigError);
  EXPECT_THROW(cost_of(CollectiveKind::all_gather, 1_MB, {8, 2}, round_cluster(), Algorithm::direct), ConfigError);
}

TEST(Collective, GroupsLieOnNodes) {
  EXPECT_EQ(group_of(1, 1, 8), (Group{1, 1}));
  EXPECT_EQ(group_of(7, 1, 8), (Group{7, 1}));
  EXPECT_EQ(group_of(1024, 1, 8), (Group{8, 128}));
  EXPECT_EQ(group_of(128, 8, 8), (Group{1, 128}));
  EXPECT_EQ(group_of(16, 4, 8), (Group{2, 8}));
  EXPECT_EQ(group_of(16, 64, 8), (Group{1, 16}));
  EXPECT_EQ(group_of(256, 1, 72), (Group{64, 4}));
  EXPECT_EQ(group_of(12, 1, 8), (Group{6, 2}));
  EXPECT_THROW(group_of(13, 1, 8), ConfigError);
}

TEST(Collective, TooManyBytesAreAnError) {
  EXPECT_THROW(cost_of(CollectiveKind::all_reduce, Bytes{UINT64_MAX / 4}, {8, 1}, round_cluster()), ArithmeticOverflow);
}

}  // namespace
}  // namespace shardplan
