// Plans of models that read images: stages of a pipeline that see and that do not, and what is said where something is not counted.
#include <gtest/gtest.h>

#include "tests/tools/memcalc/program.h"

namespace shardplan::test {
namespace {

namespace json = boost::json;

const std::string kPipeline = "qwen2-vl-2b --gpus 4 --pp 4 --zero 0 --gpu a100-40gb --profile hf-sdpa";

// The last stage has the head, whose logits are far more than the GPU has.
TEST(MemcalcSamples, TheLastStageOfAModelThatSeesIsCounted) {
  const Outcome outcome = memcalc("plan " + kPipeline + " --seq 16384 --image-size 448x448 --json");
  EXPECT_EQ(outcome.status, 1);
  const json::object seeing = json::parse(outcome.out).as_object();
  EXPECT_EQ(seeing.at("fits"), json::value(false));
  EXPECT_EQ(seeing.at("worst").at("role").as_string(), "pipeline 3");
  const json::array& ranks = seeing.at("ranks").as_array();
  ASSERT_EQ(ranks.size(), 4U);
  for (const json::value& rank : ranks) {
    ASSERT_FALSE(rank.at("device").at("total").is_null()) << rank.at("role");
  }
  // As it is of the language model alone, but for rotations by three places instead of one.
  const json::object text =
      json::parse(
          memcalc("plan qwen2-1.5b --gpus 4 --pp 4 --zero 0 --gpu a100-40gb --profile hf-sdpa --seq 16384 --json").out)
          .as_object();
  const auto peak = [](const json::object& planned) {
    return static_cast<double>(number(planned.at("worst").at("device").at("peak_allocated")));
  };
  EXPECT_NEAR(peak(seeing) / peak(text), 1, 0.02);
  EXPECT_GE(peak(seeing), peak(text));
}

// Without the images' size the first stage is not known: the others say nothing of whether it fits.
TEST(MemcalcSamples, AStageThatIsNotCountedLeavesTheVerdictOpen) {
  const json::object planned = plan(kPipeline + " --seq 1024");
  EXPECT_TRUE(planned.at("fits").is_null());
  EXPECT_TRUE(planned.at("headroom_bytes").is_null());
  EXPECT_TRUE(planned.at("ranks").at(0).at("device").at("peak_allocated").is_null());
  EXPECT_FALSE(planned.at("ranks").at(3).at("device").at("peak_allocated").is_null());
  EXPECT_TRUE(has(json::serialize(planned.at("notes")), "activations of pipeline 0 are not counted: "));
  const std::string text = memcalc("plan " + kPipeline + " --seq 1024").out;
  EXPECT_TRUE(has(text, "Whether it fits is not known: activations of pipeline 0 are not counted (")) << text;
  EXPECT_FALSE(has(text, "fits and leaves")) << text;
  const std::string unnamed = memcalc("plan qwen2-vl-2b --gpus 4 --pp 4 --zero 0 --profile hf-sdpa --seq 1024").out;
  EXPECT_TRUE(has(unnamed, "; activations of pipeline 0 are not counted (")) << unnamed;
  // Where no stage is known, one note is enough.
  const std::string none = json::serialize(plan(kPipeline + " --seq 1024 --attention flash").at("notes"));
  EXPECT_TRUE(has(none, "\"activations are not counted: ")) << none;
}

TEST(MemcalcSamples, TheFlagThatIsMissingIsNamed) {
  const std::string text = memcalc("plan qwen2-vl-2b --seq 1024 --profile hf-sdpa").out;
  const std::size_t line = text.find("activations, loss");
  ASSERT_NE(line, std::string::npos) << text;
  const std::string said = text.substr(line, text.find('\n', line) - line);
  EXPECT_TRUE(has(said, "--image-size HEIGHTxWIDTH")) << said;
  EXPECT_TRUE(has(said, "--images 0")) << said;
}

// What one micro-batch is, and which flags say nothing of it.
TEST(MemcalcSamples, ModelsOfImagesAreGivenImages) {
  for (const char* model : {"vit-base-patch16-224", "dit-s-2"}) {
    const std::string plain = memcalc(std::string("plan ") + model + " --micro-batch 3 --profile hf-sdpa").out;
    EXPECT_TRUE(has(plain, "3 images,")) << plain;
    EXPECT_FALSE(has(plain, "is not used")) << plain;
    const std::string flags = std::string(model) + " --images 5 --seq 7 --micro-batch 3 --profile hf-sdpa";
    const std::string text = memcalc("plan " + flags).out;
    EXPECT_TRUE(has(text, "3 images,")) << text;
    EXPECT_FALSE(has(text, "tokens")) << text;
    EXPECT_TRUE(has(text, "note: --seq is not used")) << text;
    EXPECT_TRUE(has(text, "note: --images is not used")) << text;
  }
  const std::string both = memcalc("plan sd3-medium --seq 589 --micro-batch 2 --profile hf-sdpa").out;
  EXPECT_TRUE(has(both, "2 images with 589 tokens of text each")) << both;
  EXPECT_FALSE(has(both, "--seq is not used")) << both;
  EXPECT_TRUE(has(memcalc("plan gpt2 --seq 512 --micro-batch 2").out, "2 x 512 tokens"));
}

// A merger's tokens take the place of words.
TEST(MemcalcSamples, AMergerOfAnotherWidthIsRefused) {
  const std::string path = testing::TempDir() + "merger.config.json";
  const auto refused = [&](const std::string& config, const std::string& words) {
    std::ofstream(path) << config;
    expect_failure("plan " + path, 3, words);
  };
  const std::string text =
      R"("hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2)";
  refused(R"({"model_type": "qwen2_vl", )" + text +
              R"(, "vision_config": {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 96}})",
          "vision_config.hidden_size: expected 64, as hidden_size of the language model, found 96");
  refused(R"({"model_type": "qwen2_5_vl", "text_config": {)" + text +
              R"(}, "vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 48}})",
          "vision_config.out_hidden_size: expected 64, as text_config.hidden_size of the language model, found 48");
  std::filesystem::remove(path);
}

// Ulysses: ranks that share each text out hold a part of what one would.
TEST(MemcalcSamples, RanksThatShareATextOut) {
  const auto planned = [](const std::string& flags) {
    const Outcome outcome =
        memcalc("plan llama-3.1-8b --gpus 8 --zero 3 --engine deepspeed --seq 32768 " + flags + " --json");
    return json::parse(outcome.out).at("worst").at("device");
  };
  const double whole = static_cast<double>(number(planned("").at("at_peak").at("activations")));
  const double part = static_cast<double>(number(planned("--cp 8").at("at_peak").at("activations")));
  EXPECT_NEAR(part / whole, 1.0 / 8, 0.02);
  EXPECT_TRUE(has(memcalc("plan llama-3.1-8b --gpus 8 --cp 8 --engine deepspeed --seq 32767").out,
                  "8 ranks (--cp) cannot share out 32767 tokens"));
  EXPECT_TRUE(has(memcalc("plan gemma-2-9b --gpus 8 --cp 8 --engine deepspeed --seq 8192").out,
                  "profile hf-sdpa shares out no sequence of gemma2 (--cp)"));
  EXPECT_TRUE(has(memcalc("plan llama-3.1-8b --gpus 8 --cp 8 --zero 3 --engine fsdp2 --seq 8192").out,
                  "accelerate's ring attention is not known (--cp with engine fsdp2)"));
}

TEST(MemcalcSamples, WhatAFlagCannotBeIsSaid) {
  EXPECT_TRUE(has(memcalc("plan gpt2 --gpus 1 --seq 1025").out, "gpt2 has positions for 1024 tokens, not for 1025"));
  EXPECT_TRUE(has(memcalc("plan gpt2 --gpus 1 --seq 1024").out, "peak allocated"));
  EXPECT_TRUE(has(memcalc("fit gpt2 --gpus 1 --gpu 80GiB --seq 128 --ask seq").out, "sequence 1,024"));
  EXPECT_TRUE(has(
      memcalc("plan llama-3.1-8b --gpus 8 --engine fsdp2 --zero 3 --profile torchtitan --seq 64 --attention eager").out,
      "profile torchtitan has attention sdpa alone, not eager"));
  EXPECT_TRUE(has(memcalc("plan mixtral-8x7b --gpus 8 --tp 2 --engine megatron --seq 64").out,
                  "Megatron trains no mixture of experts with --tp and without --sequence-parallel"));
  EXPECT_TRUE(has(memcalc("simulate gpt2 --gpus 2 --seq 64 --recompute every=2 --gpu h100-80gb").out,
                  "recompute every=2 is in the memory and not in the times"));
}

}  // namespace
}  // namespace shardplan::test
