// Stages of a pipeline, each of which runs its part of a model of transformers.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "planner/activations/profiles.h"
#include "planner/formats/hf_config.h"
#include "planner/parallel.h"

namespace shardplan {
namespace {

Model model_of(const std::string& config) {
  return model_from_hf_config(JsonDocument(config, "config.json").root());
}

struct Step {
  Profile profile = Profile::hf_sdpa;
  RecomputeKind recompute = RecomputeKind::none;
  std::uint64_t images = 1;
  std::uint64_t pixels = 0;
};

ClientSetup client_of(const Step& step) {
  ClientSetup client;
  client.profile = step.profile;
  client.recompute = step.recompute;
  client.micro_batch = 2;
  client.sequence = 48;
  client.images = step.images;
  client.image_height = client.image_width = step.pixels;
  return client;
}

std::vector<Activity> stages_of(const Model& model, std::uint64_t stages, const Step& step) {
  shardplan::Setup setup;
  setup.policy = policy_named("bf16");
  setup.parallel.pipeline = stages;
  setup.world_size = 1;
  std::vector<Activity> each;
  for (const RankKind& kind : kinds_of_ranks(model, setup)) {
    const ActivityResult result = activity_of(model, kind.catalog, setup, client_of(step), {.folds = false});
    EXPECT_TRUE(result.activity) << kind.role << ": " << result.unknown_because;
    each.push_back(result.activity.value_or(Activity{}));
  }
  return each;
}

std::int64_t peak(const Activity& activity) {
  return sum(peak_of(activity).held);
}

// Of blocks alone, by their numbers.
std::map<std::string, std::uint64_t> saved_by_block(const Activity& activity, std::string_view stack) {
  std::map<std::string, std::uint64_t> saved;
  for (const SavedByUnit& unit : activity.saved) {
    if (unit.unit.starts_with(stack)) saved[unit.unit] = unit.bytes.count();
  }
  return saved;
}

constexpr std::string_view kText =
    R"("hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, )"
    R"("num_key_value_heads": 2, "vocab_size": 128, "head_dim": 16)";

std::string llava() {
  return fmt::format(R"({{"model_type": "llava", "text_config": {{"model_type": "llama", {}}},
      "vision_config": {{"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                         "num_attention_heads": 2, "image_size": 28, "patch_size": 14}}}})",
                     kText);
}

std::string qwen2_vl() {
  return fmt::format(R"({{"model_type": "qwen2_vl", {}, "tie_word_embeddings": true,
      "vision_config": {{"depth": 3, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}}}})",
                     kText);
}

std::string qwen25_vl() {
  return fmt::format(
      R"({{"model_type": "qwen2_5_vl", "text_config": {{{}}}, "vision_config": {{"depth": 3, "hidden_size": 32,
      "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64, "fullatt_block_indexes": [1]}}}})",
      kText);
}

std::string gemma3() {
  return fmt::format(R"({{"model_type": "gemma3", "mm_tokens_per_image": 4, "text_config": {{{}, "sliding_window": 16}},
      "vision_config": {{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
                         "image_size": 56, "patch_size": 14}}}})",
                     kText);
}

std::string llama4() {
  return fmt::format(
      R"({{"model_type": "llama4", "text_config": {{{}, "intermediate_size_mlp": 96, "num_local_experts": 2}},
      "vision_config": {{"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
                         "image_size": 56, "patch_size": 14, "vision_output_dim": 64, "projector_input_dim": 64,
                         "projector_output_dim": 64}}}})",
      kText);
}

std::string kimi_vl() {
  return R"({"model_type": "kimi_vl",
      "text_config": {"model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
                      "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4,
                      "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": null,
                      "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "vocab_size": 128,
                      "first_k_dense_replace": 1, "n_shared_experts": 1},
      "vision_config": {"model_type": "moonvit", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                        "num_attention_heads": 2, "init_pos_emb_height": 4, "init_pos_emb_width": 4}})";
}

struct Case {
  std::string config;
  std::uint64_t pixels = 0;
  bool without_images = true;  // whether its forward is known without them too
};

// Stages behind the first read no images: they are those of the language model, whatever the first one has read.
TEST(HfPipeline, OnlyTheFirstStageSees) {
  for (const Case& c : {Case{llava()}, Case{qwen2_vl(), 56}, Case{qwen25_vl(), 56}, Case{gemma3()}, Case{llama4()},
                        Case{kimi_vl(), 0, false}}) {
    const Model model = model_of(c.config);
    for (const Profile profile : {Profile::hf_sdpa, Profile::hf_eager}) {
      for (const RecomputeKind recompute : {RecomputeKind::none, RecomputeKind::full}) {
        SCOPED_TRACE(fmt::format("{} {} {}", model.catalog.family, name(profile), recompute_words(recompute, 1)));
        const Step seeing{profile, recompute, 1, c.pixels};
        const std::vector<Activity> stages = stages_of(model, 3, seeing);
        ASSERT_EQ(stages.size(), 3U);
        for (const Activity& stage : stages) EXPECT_GT(peak(stage), 0);
        if (!c.without_images) continue;
        const std::vector<Activity> blind = stages_of(model, 3, {profile, recompute, 0, 0});
        EXPECT_GT(peak(stages[0]), peak(blind[0]));
        EXPECT_EQ(stages[1], blind[1]);
        EXPECT_EQ(stages[2], blind[2]);
      }
    }
  }
}

// LLaVA's and Kimi-VL's language models are Llama and DeepSeek-V3 to the byte.
TEST(HfPipeline, LaterStagesAreThoseOfTheLanguageModel) {
  const auto bare = [](const std::string& config) {
    const JsonDocument document(config, "config.json");
    return model_from_hf_config(document.root()["text_config"]);
  };
  for (const std::string& config : {llava(), kimi_vl()}) {
    for (const Profile profile : {Profile::hf_sdpa, Profile::hf_eager}) {
      const std::vector<Activity> seeing = stages_of(model_of(config), 3, {.profile = profile});
      const std::vector<Activity> alone = stages_of(bare(config), 3, {.profile = profile});
      for (std::size_t stage = 1; stage < 3; ++stage) {
        EXPECT_EQ(peak(seeing[stage]), peak(alone[stage])) << config << stage;
        std::uint64_t saved[2] = {};
        for (const SavedByUnit& unit : seeing[stage].saved) saved[0] += unit.times * unit.bytes.count();
        for (const SavedByUnit& unit : alone[stage].saved) saved[1] += unit.times * unit.bytes.count();
        EXPECT_EQ(saved[0], saved[1]) << config << stage;
      }
    }
  }
}

// Each block of a pipeline keeps what it keeps in the whole model, and the first of a stage what the first of the model does: what its
// blocks share besides, and its input waits for a gradient too.
TEST(HfPipeline, BlocksKeepWhatTheyKeepInTheWholeModel) {
  for (const auto& [config, stack] :
       {std::pair<std::string, std::string>{llava(), "language_model.model.layers"}, {qwen25_vl(), "model.layers"}}) {
    const Model model = model_of(config);
    const Step step{.pixels = model.catalog.family == "llava" ? 0U : 56U};
    const auto whole = saved_by_block(stages_of(model, 1, step)[0], stack);
    std::size_t compared = 0;
    for (const Activity& stage : stages_of(model, 3, step)) {
      const auto blocks = saved_by_block(stage, stack);
      EXPECT_EQ(blocks.begin()->second, whole.begin()->second) << blocks.begin()->first;
      for (auto block = std::next(blocks.begin()); block != blocks.end(); ++block, ++compared) {
        EXPECT_EQ(block->second, whole.at(block->first)) << block->first;
      }
    }
    EXPECT_EQ(compared, 3U);
  }
}

// Layers in a window from the fourth on (max_window_layers): the second of three stages has one with and one without.
TEST(HfPipeline, WindowsByLayer) {
  const auto config = [](int first) {
    return fmt::format(R"({{"model_type": "qwen3", {}, "use_sliding_window": true, "sliding_window": 16,
        "max_window_layers": {}}})",
                       kText, first);
  };
  const std::string stack = "model.layers";
  const std::vector<Activity> mixed = stages_of(model_of(config(3)), 3, {});
  const std::vector<Activity> windows = stages_of(model_of(config(0)), 3, {});
  const std::vector<Activity> none = stages_of(model_of(config(6)), 3, {});
  const auto second_block = [&](const Activity& stage) {
    return std::next(saved_by_block(stage, stack).begin())->second;
  };
  // Stage by stage, the block that is not its stage's first.
  EXPECT_EQ(second_block(mixed[0]), second_block(none[0]));
  EXPECT_EQ(second_block(mixed[1]), second_block(windows[1]));
  EXPECT_EQ(second_block(mixed[2]), second_block(windows[2]));
  EXPECT_NE(peak(windows[1]), peak(none[1]));
  EXPECT_EQ(peak(mixed[2]), peak(windows[2]));
  EXPECT_NE(peak(mixed[1]), peak(none[1]));
  EXPECT_NE(peak(mixed[1]), peak(windows[1]));
}

}  // namespace
}  // namespace shardplan
