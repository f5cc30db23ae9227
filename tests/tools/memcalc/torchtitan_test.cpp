// Profile torchtitan on meshes, as its users ask for it.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>

#include "tests/tools/memcalc/program.h"

namespace {

using namespace shardplan::test;

namespace json = boost::json;

const std::string kMesh = "llama-3.1-8b --gpus 64 --engine fsdp2 --zero 3 --profile torchtitan";
const std::string kRun = kMesh + " --seq 8192";

std::uint64_t at_peak(const json::object& plan, const char* part) {
  return number(plan.at("worst").at("device").at("at_peak").at(part));
}

// What a step takes longer with the flags.
double seconds_more(const std::string& words, const std::string& flags) {
  const json::object result = plan(words + " --gpu h100-80gb --against '" + flags + "'");
  return result.at("against").at("step_seconds").at("difference").as_double();
}

TEST(MemcalcTorchtitan, MeshesAreAnswered) {
  for (const char* mesh :
       {" --tp 8", " --cp 4", " --tp 2 --cp 2", " --tp 8 --pp 4 --grad-accum 8",
        " --pp 4 --virtual-stages 2 --grad-accum 8 --cp 2", " --tp 2 --pp 2 --schedule zero-bubble --grad-accum 4"}) {
    for (const char* recompute : {"none", "selective", "full"}) {
      const json::object result = plan(kRun + mesh + " --recompute " + recompute);
      EXPECT_GT(at_peak(result, "activations"), 0U) << mesh << recompute;
      EXPECT_TRUE(result.at("worst").at("device").at("peak_allocated").is_number()) << mesh;
    }
  }
}

// A rank of eight has an eighth of everything but the gathered inputs of products, of which a block keeps two whole.
TEST(MemcalcTorchtitan, TensorParallelismSharesOutActivations) {
  const json::object whole = plan(kRun + " --recompute none");
  const json::object part = plan(kRun + " --tp 8 --recompute none");
  constexpr std::uint64_t kGathered = 32 * 2 * 2 * std::uint64_t{8192} * 4096;
  EXPECT_GT(at_peak(part, "activations"), kGathered);
  EXPECT_LT(at_peak(part, "activations"), at_peak(whole, "activations") / 8 + kGathered + kGathered / 8);
}

// Whole fp32 gradients of a rank's stage, from its first micro-batch to its last.
TEST(MemcalcTorchtitan, APipelineKeepsWholeGradients) {
  const json::object result = plan(kRun + " --tp 8 --pp 4 --grad-accum 8");
  const json::value& device = result.at("worst").at("device");
  EXPECT_EQ(number(device.at("gradients")), 2 * number(device.at("parameters")));  // an fp32 shard of two
}

// Logits of all micro-batches are the loss's, the gradient of other ranks' words is a gradient; neither is workspace.
TEST(MemcalcTorchtitan, WhatAPipelineKeepsIsInItsLine) {
  const std::string run = kRun + " --pp 2 --recompute full";
  constexpr std::uint64_t kLogits = 2 * std::uint64_t{8192} * 128'256;  // of a micro-batch
  const json::object two = plan(run + " --grad-accum 2");
  const json::object eight = plan(run + " --grad-accum 8");
  EXPECT_EQ(at_peak(eight, "loss") - at_peak(two, "loss"), 6 * kLogits);
  EXPECT_EQ(at_peak(eight, "workspace") - at_peak(two, "workspace"), 6 * 16 * std::uint64_t{8192});  // the batch
  bool named = false;
  const json::value explained = json::parse(memcalc("explain " + run + " --grad-accum 8 --json").out);
  for (const json::value& term : explained.at("client").at("resident").as_array()) {
    if (term.at("name").as_string() != "logits of the step's micro-batches") continue;
    named = true;
    EXPECT_EQ(term.at("purpose").as_string(), "loss");
    EXPECT_EQ(number(term.at("bytes")), 8 * kLogits);
  }
  EXPECT_TRUE(named);
}

// FSDP2's: gradients that wait, in the reduction's dtype, and more layers behind the first stage.
TEST(MemcalcTorchtitan, OtherEnginesHaveTheirOwnRules) {
  const std::string run = "llama-3.1-8b --gpus 48 --profile torchtitan --seq 8192 --tp 2 --pp 3 --grad-accum 3";
  const std::string waiting = "gradient of other ranks' words";
  const std::string behind = "the 2 behind the first have one more";
  const std::string theirs = memcalc("explain " + run + " --engine fsdp2 --zero 3").out;
  EXPECT_NE(theirs.find(behind), std::string::npos);
  // On the first stage: ten layers and a half of the words, those of the other half, and one weight's on its way.
  constexpr std::uint64_t kLayer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) / 2 + 2 * 4096;
  constexpr std::uint64_t kWords = std::uint64_t{128'256} * 4096;
  constexpr std::uint64_t kWaiting = 4 * (10 * kLayer + kWords) + 2 * 4096 * 14336 / 2;
  for (const char* wire : {"", " --wire-dtype fp32", " --wire-dtype bf16"}) {  // else in the master's dtype
    const json::object result = plan(run + " --engine fsdp2 --zero 3" + wire);
    EXPECT_EQ(number(result.at("ranks").at(0).at("device").at("at_peak").at("gradients")), kWaiting) << wire;
  }
  for (const char* engine : {" --zero 1", " --engine megatron --zero 1", " --engine paper --zero 1"}) {
    const std::string other = memcalc("explain " + run + engine).out;
    EXPECT_FALSE(other.empty()) << engine;
    EXPECT_EQ(other.find(waiting), std::string::npos) << engine;
    EXPECT_EQ(other.find("behind the first"), std::string::npos) << engine;
  }
}

TEST(MemcalcTorchtitan, TheLossMayBeWhole) {
  const std::string run = kRun + " --tp 8 --recompute full";
  // In parallel 16 bytes of each logit of this rank at the peak, else 12 of each of all.
  EXPECT_GT(at_peak(plan(run + " --disable-loss-parallel"), "loss"), 5 * at_peak(plan(run), "loss"));
  // Logits of all words are gathered, which takes its time: an eighth of 8,192 x 128,256 of them from each, at some 360 GB/s.
  EXPECT_NEAR(seconds_more(run, "--disable-loss-parallel"), 2 * 8192 * 128'256.0 * 7 / 8 / 360e9, 1e-3);
}

// training.mixed_precision_reduce: float32, unless another is said.
TEST(MemcalcTorchtitan, GradientsTravelInFp32) {
  const std::string run = "llama-3-8b --gpus 8 --engine fsdp2 --zero 3 --profile torchtitan --seq 8192";
  const auto reduced = [](const json::object& plan) {
    return number(plan.at("communication").at("by_operation").at("reduce_gradients"));
  };
  const json::object usual = plan(run);
  EXPECT_EQ(usual.at("setup").at("wire_dtype").as_string(), "fp32");
  EXPECT_EQ(reduced(usual), 4 * std::uint64_t{8'030'261'248} * 7 / 8);
  EXPECT_EQ(reduced(plan(run + " --wire-dtype fp32")), reduced(usual));
  EXPECT_EQ(2 * reduced(plan(run + " --wire-dtype bf16")), reduced(usual));
  EXPECT_EQ(seconds_more(kRun, "--wire-dtype fp32"), 0);
  EXPECT_LT(seconds_more(kRun, "--wire-dtype bf16"), 0);
}

// A pipeline's gradients wait for the last micro-batch: what is sent, and what is said of it.
TEST(MemcalcTorchtitan, APipelineSendsOnceAStep) {
  const std::string whole = "llama-3-8b --gpus 16 --engine fsdp2 --zero 3 --profile torchtitan --seq 4096";
  const std::string run = whole + " --pp 2";
  const json::object eight = plan(run + " --grad-accum 8");
  EXPECT_EQ(eight.at("communication"), plan(run + " --grad-accum 16").at("communication"));
  EXPECT_EQ(eight.at("setup").at("cadence").as_string(), "step");
  const json::object sent = eight.at("communication").as_object();
  EXPECT_EQ(sent.at("textbook_bytes_sent_per_step"), sent.at("bytes_sent_per_step"));
  const std::string said = memcalc("explain " + run + " --grad-accum 4").out;
  EXPECT_NE(said.find("A = 4, cadence step"), std::string::npos);
  EXPECT_NE(said.find("(N-1)/N, once in a step, and kept to its end"), std::string::npos);
  EXPECT_EQ(said.find("of A micro-batches"), std::string::npos);
  const std::string each = memcalc("explain " + whole + " --grad-accum 4").out;
  EXPECT_NE(each.find("A = 4, cadence micro_batch"), std::string::npos);
  EXPECT_NE(each.find("(N-1)/N, each of A micro-batches"), std::string::npos);
  EXPECT_NE(each.find("forward and backward of each of A micro-batches"), std::string::npos);
}

TEST(MemcalcTorchtitan, FlagsAreInTheSetup) {
  const json::value plain = plan(kRun).at("setup");
  EXPECT_TRUE(plain.at("loss_parallel").is_null());
  EXPECT_TRUE(plain.at("context_rotate_method").is_null());
  const json::value mesh =
      plan(kRun + " --tp 2 --cp 2 --disable-loss-parallel --context-rotate-method alltoall").at("setup");
  EXPECT_FALSE(mesh.at("loss_parallel").as_bool());
  EXPECT_EQ(mesh.at("context_rotate_method").as_string(), "alltoall");
  EXPECT_TRUE(mesh.at("sequence_parallel").as_bool());
  const auto differ = [](const std::string& axes, const std::string& flags) {
    std::vector<std::string> names;
    const json::value other = plan(kRun + axes + " --against '" + flags + "'").at("against");
    for (const json::value& setting : other.at("setup").as_array()) names.emplace_back(setting.at("name").as_string());
    return names;
  };
  EXPECT_EQ(differ(" --tp 2", "--disable-loss-parallel"), std::vector<std::string>{"loss_parallel"});
  EXPECT_EQ(differ(" --cp 2", "--context-rotate-method alltoall"), std::vector<std::string>{"context_rotate_method"});
}

TEST(MemcalcTorchtitan, WhatIsNotKnownIsSaidSo) {
  const auto refusal = [](const std::string& words) { return memcalc("plan " + kMesh + " " + words).out; };
  EXPECT_NE(refusal("--seq 8192 --tp 16").find("--tp 16 ranks heads of keys and values of its own"), std::string::npos);
  EXPECT_NE(refusal("--seq 8196 --cp 4").find("8 equal pieces for --cp 4"), std::string::npos);
  EXPECT_NE(refusal("--seq 8191 --tp 2").find("cuts a text into 2 for --tp 2: not 8191 tokens"), std::string::npos);
  EXPECT_NE(refusal("--seq 8196 --cp 2 --tp 4").find("for --cp 2, and a rank's part of it into 4 for --tp 4: not 8196"),
            std::string::npos);
  for (const char* flags :
       {"--lora-rank 8 --lora-targets q_proj", "--lora-rank 8 --lora-targets q_proj --quantize nf4"}) {
    EXPECT_NE(refusal(std::string("--seq 8192 --tp 2 ") + flags).find("no adapters (--lora-rank) under --tp"),
              std::string::npos);
    EXPECT_EQ(refusal(std::string("--seq 8192 ") + flags).find("under --tp"), std::string::npos);
  }
  EXPECT_NE(refusal("--seq 8192 --tp 2 --quantize nf4 --freeze 'model.*'").find("weights (--quantize) under --tp"),
            std::string::npos);
  EXPECT_NE(refusal("--seq 8192 --cp 2 --precision fp32").find("by FlashAttention alone"), std::string::npos);
  EXPECT_NE(refusal("--seq 8192 --pp 2 --schedule dualpipe").find("has no dualpipe"), std::string::npos);
  expect_failure("plan " + kRun + " --pp 4 --virtual-stages 2 --grad-accum 6", 2, "groups of --pp 4");
  expect_failure("plan llama-3.1-8b --disable-loss-parallel", 2, "is of --profile torchtitan alone");
  expect_failure("plan llama-3.1-8b --profile torchtitan --context-rotate-method ring", 2, "allgather or alltoall");
}

}  // namespace
