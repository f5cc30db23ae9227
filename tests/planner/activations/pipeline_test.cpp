// How many micro-batches a rank of a pipeline holds: the schedules' published counts.
#include "planner/activations/pipeline.h"

#include <gtest/gtest.h>

#include <numeric>

#include "planner/families/megatron.h"
#include "planner/parallel.h"

namespace shardplan {
namespace {

std::uint64_t total(const HeldChunks& held) {
  return std::accumulate(held.begin(), held.end(), std::uint64_t{0});
}

TEST(Pipeline, OneForwardOneBackwardHoldsTheStagesThatFollow) {
  const Parallelism p{.pipeline = 8};
  for (std::uint64_t rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(most_held(p, rank, 64), HeldChunks{8 - rank});
    EXPECT_EQ(most_held(p, rank, 3), HeldChunks{std::min<std::uint64_t>(3, 8 - rank)});
  }
}

// Narayanan et al., arXiv 2104.04473, sec. 2.2.2; Korthikanti et al., arXiv 2205.05198, sec. 4.2.3: L (1 + (p - 1) / (p m))
// layers on the first rank, so P V + P - 1 chunks.
TEST(Pipeline, InterleavedFirstRankHoldsMore) {
  for (const std::uint64_t chunks : {2U, 3U, 5U}) {
    const Parallelism p{.pipeline = 4, .virtual_stages = chunks};
    EXPECT_EQ(total(most_held(p, 0, 64)), 4 * chunks + 4 - 1) << chunks;
    EXPECT_EQ(total(most_held(p, 3, 64)), (chunks - 1) * 4 + 1) << chunks;
  }
}

TEST(Pipeline, TheChunkWithTheHeadHasOneMicroBatch) {
  const Parallelism p{.pipeline = 4, .virtual_stages = 3};
  EXPECT_EQ(held_while(p, 3, 64, 2), (HeldChunks{4, 4, 1}));
  const Parallelism two{.pipeline = 2, .virtual_stages = 2};
  EXPECT_EQ(held_while(two, 1, 64, 1), (HeldChunks{2, 1}));
}

// Every forward has its backward, and no backward comes before its forward.
TEST(Pipeline, OrdersAreComplete) {
  for (const std::uint64_t stages : {1U, 2U, 4U}) {
    for (const std::uint64_t chunks : {1U, 2U, 4U}) {
      if (stages == 1 && chunks > 1) continue;
      const Parallelism p{.pipeline = stages, .virtual_stages = chunks};
      for (std::uint64_t rank = 0; rank < stages; ++rank) {
        for (const std::uint64_t micro_batches : {stages, 3 * stages}) {
          std::vector<std::int64_t> held(chunks);
          std::uint64_t passes = 0;
          for (const ChunkPass& pass : order_of_passes(p, rank, micro_batches)) {
            held[pass.chunk] += pass.pass == autograd::Pass::forward ? 1 : -1;
            EXPECT_GE(held[pass.chunk], 0);
            ++passes;
          }
          EXPECT_EQ(passes, 2 * chunks * micro_batches);
          for (const std::int64_t left : held) EXPECT_EQ(left, 0);
        }
      }
    }
  }
}

// A long step holds no more than a short one that fills the pipeline.
TEST(Pipeline, LongStepsAreNotWalked) {
  const Parallelism p{.pipeline = 4, .virtual_stages = 2};
  for (std::uint64_t rank = 0; rank < 4; ++rank) EXPECT_EQ(most_held(p, rank, 16), most_held(p, rank, 4096));
}

TEST(Pipeline, ZeroBubbleAndDualPipe) {
  for (std::uint64_t rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(most_held({.pipeline = 8, .schedule = PipelineSchedule::zero_bubble}, rank, 64), HeldChunks{8});
    EXPECT_EQ(total(most_held({.pipeline = 8, .schedule = PipelineSchedule::dualpipe}, rank, 64)), 8U + 1U);
  }
}

TEST(Pipeline, ChunksOfARank) {
  MegatronSizes sizes;
  sizes.vocabulary = 128;
  sizes.layers = 8;
  sizes.hidden = 64;
  sizes.ffn = 256;
  sizes.heads = sizes.query_groups = 4;
  sizes.kv_channels = 16;
  sizes.max_positions = 32;
  const Model model = megatron_model("m", sizes);
  shardplan::Setup setup;
  setup.parallel = {.pipeline = 2, .virtual_stages = 2};
  const std::vector<RankKind> kinds = kinds_of_ranks(model, setup);
  const std::vector<Catalog> first = chunks_of(model, kinds[0].catalog, setup.parallel, 0);
  ASSERT_EQ(first.size(), 2U);
  EXPECT_EQ(first[0].runs.size(), 2U);  // embedding, layers 0 and 1
  EXPECT_EQ(first[1].runs.size(), 1U);
  EXPECT_EQ(first[1].runs[0].first_number, 4U);
  const std::vector<Catalog> last = chunks_of(model, kinds[1].catalog, setup.parallel, 1);
  ASSERT_EQ(last.size(), 2U);
  EXPECT_EQ(last[0].runs.size(), 1U);
  EXPECT_EQ(last[1].runs.size(), 2U);
  EXPECT_EQ(last[1].runs[0].first_number, 6U);
  // A layout may leave a piece empty, and one with the head alone.
  setup.parallel.piece_layers = {3, 5, 0, 0};
  const std::vector<RankKind> uneven = kinds_of_ranks(model, setup);
  const std::vector<Catalog> with_head = chunks_of(model, uneven[1].catalog, setup.parallel, 1);
  ASSERT_EQ(with_head.size(), 2U);
  EXPECT_EQ(with_head[0].runs[0].count, 5U);
  ASSERT_EQ(with_head[1].runs.size(), 1U);
  EXPECT_EQ(with_head[1].runs[0].name, "head");
  EXPECT_TRUE(chunks_of(model, uneven[0].catalog, setup.parallel, 0)[1].runs.empty());
  // DualPipe: stages r and P - 1 - r.
  setup.parallel = {.pipeline = 4, .schedule = PipelineSchedule::dualpipe};
  const std::vector<Catalog> both = chunks_of(model, kinds_of_ranks(model, setup)[0].catalog, setup.parallel, 0);
  ASSERT_EQ(both.size(), 2U);
  EXPECT_EQ(both[0].runs[0].name, "embedding");
  EXPECT_EQ(both[1].runs.back().name, "head");
  EXPECT_EQ(both[1].runs[0].first_number, 6U);
}

// The rank's peak is the chunk's own and what the others have under way.
TEST(Pipeline, PeakAddsWhatIsInFlight) {
  Activity chunk;
  chunk.spans = {{.unit = "layer", .net = {10, 0, 0, 0}, .peak = {15, 0, 0, 0}},
                 {.unit = "layer", .pass = autograd::Pass::backward, .net = {-10, 0, 0, 0}, .peak = {3, 0, 0, 0}}};
  const Parallelism p{.pipeline = 4};
  const std::vector<Activity> chunks{chunk};
  EXPECT_EQ(sum(peak_of(chunks, p, 0, 16).peak.held), 3 * 10 + 15);
  EXPECT_EQ(sum(peak_of(chunks, p, 3, 16).peak.held), 15);
}

// torch.distributed.pipelining 2.15 (schedules.py, ScheduleInterleaved1F1B._calculate_single_rank_operations), walked pass by pass:
// micro-batches of both chunks on each rank of four, and of three chunks.
TEST(Pipeline, InterleavesAsTorchDoes) {
  const auto held = [](std::uint64_t chunks, std::uint64_t micro_batches) {
    std::vector<HeldChunks> each;
    for (std::uint64_t rank = 0; rank < 4; ++rank) {
      each.push_back(most_held({.pipeline = 4, .virtual_stages = chunks}, rank, micro_batches));
    }
    return each;
  };
  EXPECT_EQ(held(2, 8), (std::vector<HeldChunks>{{7, 4}, {5, 4}, {4, 3}, {4, 1}}));
  EXPECT_EQ(held(2, 4), (std::vector<HeldChunks>{{4, 4}, {4, 4}, {4, 3}, {4, 1}}));
  EXPECT_EQ(held(3, 12), (std::vector<HeldChunks>{{7, 4, 4}, {5, 4, 4}, {4, 4, 3}, {4, 4, 1}}));
}

}  // namespace
}  // namespace shardplan
