// The search of memcalc fit against planning every set-up of its space, and the bounds that it leaves set-ups out by.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "tests/support/whole_grid.h"
#include "tools/memcalc/fitting.h"
#include "tools/memcalc/joint_evaluator.h"
#include "tools/memcalc/search_space.h"
#include "tools/memcalc/together.h"

namespace shardplan::memcalc {
namespace {

CommandLine command_line(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return read_command_line(std::move(words));
}

struct Found {
  double seconds = 0;
  std::string words;
  Bytes needed;
  bool operator==(const Found&) const = default;
};

// What a set-up needs, as plan says it; nothing for what plan refuses or does not know of every rank.
std::optional<Bytes> planned_bytes(const PlanOptions& options, const std::vector<Model>& models) {
  try {
    const PlannedTogether planned = make_together(options_of_models(options), models);
    const auto known = [](const RankReport& rank) { return rank.device.total.has_value(); };
    if (std::all_of(planned.ranks.begin(), planned.ranks.end(), known)) {
      return planned.ranks[planned.worst].device.total;
    }
  } catch (const ConfigError&) {
  } catch (const ArithmeticOverflow&) {
  }
  return std::nullopt;
}

class SearchTest : public testing::TestWithParam<const char*> {
 protected:
  SearchTest() : line_(command_line(std::string(GetParam()) + " --plans 100000 --rejected 0")), fit_(ask()) {}

  Fit ask() const { return make_fit(line_.plan, line_.fit); }
  std::unique_ptr<JointEvaluator> evaluator() const {
    return std::make_unique<JointEvaluator>(fit_.models, options_of_models(line_.plan), fit_.cluster);
  }

  // Every set-up of the space whose sequences divide.
  void for_each(const std::function<void(const PlanOptions&)>& body) const {
    const SearchSpace space(line_.plan, line_.fit, fit_.models, fit_.sequences);
    PlanOptions options = space.any();
    for (const Structure& structure : space.structures()) {
      space.set(options, structure);
      for (const std::uint64_t micro_batch : space.micro_batches(structure)) {
        for (const Recomputation& recomputation : space.recomputations()) {
          space.set(options, micro_batch, recomputation);
          body(options);
        }
      }
    }
  }

  const CommandLine line_;
  const Fit fit_;
};

// No bound that the search leaves a set-up out by is more than what the plan says.
void expect_bounds(JointEvaluator& shared, const PlanOptions& options, Bytes planned) {
  const Bytes states = shared.states(options);
  const Bytes needed = shared.needed(options);
  EXPECT_LE(shared.least_states(options), states) << axes_of(options);
  EXPECT_LE(states, needed) << axes_of(options);
  EXPECT_LE(needed, planned) << axes_of(options);
}

TEST_P(SearchTest, FindsWhatPlanningEverySetUpFinds) {
  const auto shared = evaluator();
  std::vector<Found> expected;
  std::uint64_t all = 0;
  for_each([&](const PlanOptions& options) {
    ++all;
    const std::optional<Bytes> needed = planned_bytes(options, fit_.models);
    if (!needed) return;
    expect_bounds(*shared, options, *needed);
    if (*needed > fit_.gpu.bytes) return;
    expected.push_back({evaluator()->time(options).seconds(), axes_of(options), *needed});
  });
  std::vector<Found> found;
  for (const FittedPlan& plan : fit_.plans) {
    found.push_back({plan.time.seconds(), axes_of(plan.options), plan.needed});
  }
  EXPECT_TRUE(
      std::is_sorted(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.seconds < b.seconds; }));
  const auto by_words = [](const Found& a, const Found& b) { return a.words < b.words; };
  std::sort(found.begin(), found.end(), by_words);
  std::sort(expected.begin(), expected.end(), by_words);
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].words, expected[i].words);
    EXPECT_EQ(found[i].needed, expected[i].needed) << found[i].words;
    EXPECT_EQ(found[i].seconds, expected[i].seconds) << found[i].words;
  }
  // Neither all nor nothing: else this would say little.
  EXPECT_GT(expected.size(), 0U);
  EXPECT_LT(expected.size(), all);
  EXPECT_GE(fit_.decided, all);
  EXPECT_LT(fit_.evaluated, all);
}

// All of them with SHARDPLAN_TEST_ALL=1: planning each set-up of one takes seconds.
std::vector<const char*> spaces() {
  std::vector<const char*> sampled{
      "fit gpt2-medium --gpus 4 --gpu 6GiB --seq 1024 --global-batch 4 --profile megatron",
      "fit gpt2-medium --gpus 8 --gpu 8GiB --seq 1024 --global-batch 32 --engine megatron --zero 1 "
      "--pp 4 --tp 1 --cp 1",
      "fit gpt2-medium --gpus 2 --gpu 5GiB --seq 1024 --global-batch 8 --offload optimizer=cpu",
      // Cut in different places: layers of 24 and 12 blocks, an embedding that is tied and a critic's that is trained too.
      "fit gpt2 gpt2-medium --gpus 2 --gpu 6GiB --seq 128 --global-batch 8 --engine fsdp2",
      "fit gpt2-medium gpt2:frozen gpt2 --gpus 4 --gpu 7GiB --seq 512 --global-batch 8 --offload optimizer=cpu --cp 1"};
  if (!test_support::whole_grid()) return sampled;
  for (const char* more : {"fit gpt2-medium --gpus 4 --gpu 6GiB --seq 512 --global-batch 16",
                           "fit gpt2-medium --gpus 16 --gpu 5GiB --seq 1024 --global-batch 32 --zero 2 "
                           "--gpus-per-node 4 --engine fsdp2",
                           "fit gpt2-medium --gpus 4 --gpu 6GiB --seq 1024 --global-batch 8 --engine deepspeed",
                           "fit olmoe-1b-7b --gpus 8 --gpu 40GiB --seq 1024 --global-batch 8 --profile megatron --pp 1 "
                           "--cp 1",
                           "fit tinyllama-1.1b --gpus 8 --gpu 14GiB --seq 2048 --global-batch 32 --pp 2 --zero 2"}) {
    sampled.push_back(more);
  }
  return sampled;
}

INSTANTIATE_TEST_SUITE_P(Spaces, SearchTest, testing::ValuesIn(spaces()));

}  // namespace
}  // namespace shardplan::memcalc
