// The tensors that are live at the peak add up to it, to the last byte.
#include "planner/activations/live_tensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "planner/activations/client_rank.h"
#include "planner/formats/presets.h"
#include "planner/parallel.h"

namespace shardplan {
namespace {

void expect_sums(const char* preset, const Setup& setup, const ClientSetup& client) {
  const Model model = preset_model(preset).value();
  const std::vector<RankKind> kinds = kinds_of_ranks(model, setup);
  for (std::size_t stage = 0; stage < kinds.size(); ++stage) {
    SCOPED_TRACE(
        fmt::format("{} {} stage {}", preset, recompute_words(client.recompute, client.recompute_every), stage));
    const ClientSide side = client_of_rank(model, kinds[stage].catalog, setup, client, stage, {});
    ASSERT_TRUE(side.holds) << side.unknown_because;
    HeldBytes held{};
    for (const LiveTensors& tensor : live_at_peak(model, kinds[stage].catalog, setup, client, stage)) {
      held[static_cast<std::size_t>(tensor.purpose)] +=
          static_cast<std::int64_t>((tensor.count * tensor.bytes).count());
    }
    EXPECT_EQ(held, side.holds->peak.held);
  }
}

ClientSetup client_of(Profile profile, RecomputeKind recompute) {
  ClientSetup client;
  client.profile = profile;
  client.recompute = recompute;
  client.recompute_every = recompute == RecomputeKind::every ? 3 : 1;
  client.sequence = 384;
  client.micro_batch = 2;
  return client;
}

TEST(LiveTensors, AddUpToThePeak) {
  shardplan::Setup setup;
  setup.policy = policy_named("bf16-mixed");
  for (const char* preset : {"gpt2", "llama-2-7b", "roberta-base", "t5-small", "vit-base-patch16-224"}) {
    for (const RecomputeKind recompute : {RecomputeKind::none, RecomputeKind::full, RecomputeKind::every}) {
      expect_sums(preset, setup, client_of(Profile::hf_sdpa, recompute));
    }
  }
}

TEST(LiveTensors, OfPipelinesAddUpOverTheMicroBatchesUnderWay) {
  shardplan::Setup setup;
  setup.policy = policy_named("bf16-mixed");
  setup.accumulation = 8;
  setup.parallel.pipeline = 4;
  for (const std::uint64_t pieces : {1U, 2U}) {
    setup.parallel.virtual_stages = pieces;
    expect_sums("llama-2-7b", setup, client_of(Profile::megatron, RecomputeKind::none));
  }
  setup.parallel.virtual_stages = 1;
  setup.parallel.schedule = PipelineSchedule::zero_bubble;
  expect_sums("llama-2-7b", setup, client_of(Profile::megatron, RecomputeKind::none));
}

// Who keeps what, by the names that the model's code has.
TEST(LiveTensors, SavedTensorsNameTheirModules) {
  const Model model = preset_model("llama-2-7b").value();
  shardplan::Setup setup;
  setup.policy = policy_named("bf16-mixed");
  const ActivityResult result =
      activity_of(model, model.catalog, setup, client_of(Profile::hf_sdpa, RecomputeKind::none));
  const auto unit = std::find_if(result.activity->saved.begin(), result.activity->saved.end(),
                                 [](const SavedByUnit& each) { return each.unit == "model.layers.0"; });
  ASSERT_NE(unit, result.activity->saved.end());
  const auto made_by = [&](const char* module) {
    return std::find_if(unit->tensors.begin(), unit->tensors.end(),
                        [&](const SavedTensor& tensor) { return tensor.module == module; });
  };
  const auto up = made_by("mlp.up_proj");
  ASSERT_NE(up, unit->tensors.end());
  EXPECT_EQ(up->operation, "linear");
  EXPECT_EQ(up->kept_by, std::vector<std::string>{"mul"});
  // The product of the gate is what the last projection multiplies.
  EXPECT_TRUE(std::any_of(unit->tensors.begin(), unit->tensors.end(), [](const SavedTensor& tensor) {
    return tensor.kept_by == std::vector<std::string>{"mlp.down_proj: linear"};
  }));
}

}  // namespace
}  // namespace shardplan
