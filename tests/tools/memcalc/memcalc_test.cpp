// memcalc as its users call it: the program, its exit status, its output.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "tests/tools/memcalc/program.h"

namespace {

using namespace shardplan::test;

namespace json = boost::json;

TEST(Memcalc, SevenBillionParametersAreTheTextbooks112GB) {
  const json::object result = plan("--params 7e9 --precision fp16-mixed --engine paper");
  const json::object& device = result.at("worst").at("device").as_object();
  EXPECT_EQ(number(device.at("parameters")), 14'000'000'000U);
  EXPECT_EQ(number(device.at("gradients")), 14'000'000'000U);
  EXPECT_EQ(number(device.at("optimizer_states")), 84'000'000'000U);
  EXPECT_EQ(number(device.at("model_states")), 112'000'000'000U);
}

TEST(Memcalc, TheFieldsThatScriptsRead) {
  const json::object result = plan("llama-2-7b --gpus 8 --zero 3 --gpu h100-80gb --seq 4096 --micro-batch 2");
  EXPECT_EQ(result.at("schema").as_string(), "memcalc.plan/1");
  EXPECT_EQ(number(result.at("model").at("parameters")), 6'738'415'616U);
  EXPECT_EQ(number(result.at("model").at("trainable_parameters")), 6'738'415'616U);
  EXPECT_EQ(number(result.at("model").at("active_parameters")), 6'738'415'616U);
  EXPECT_EQ(number(result.at("model").at("tensors")), 291U);
  EXPECT_EQ(number(result.at("model").at("units")), 34U);
  const json::object& setup = result.at("setup").as_object();
  EXPECT_EQ(number(setup.at("world_size")), 8U);
  EXPECT_EQ(number(setup.at("data_parallel")), 8U);
  EXPECT_EQ(number(setup.at("zero_stage")), 3U);
  EXPECT_EQ(number(setup.at("sequence")), 4096U);
  EXPECT_EQ(number(setup.at("micro_batch")), 2U);
  EXPECT_EQ(setup.at("engine").as_string(), "shardplan");
  EXPECT_EQ(setup.at("precision").as_string(), "bf16-mixed");
  EXPECT_EQ(setup.at("plan_hash").as_string().size(), 32U);
  EXPECT_EQ(result.at("ranks").as_array().size(), 1U);
  EXPECT_EQ(result.at("ranks").at(0), result.at("worst"));
  const json::object& worst = result.at("worst").as_object();
  EXPECT_EQ(worst.at("role").as_string(), "all");
  EXPECT_EQ(number(worst.at("count")), 8U);
  const json::object& device = worst.at("device").as_object();
  EXPECT_EQ(number(device.at("model_states")),
            number(device.at("parameters")) + number(device.at("gradients")) + number(device.at("optimizer_states")));
  std::uint64_t held = 0;
  for (const auto& part : device.at("at_peak").as_object()) held += number(part.value());
  EXPECT_EQ(number(device.at("peak_allocated")), held);
  EXPECT_GT(number(device.at("allocated_after_step")), number(worst.at("arenas").at("device")));
  EXPECT_LT(number(device.at("allocated_after_step")), number(device.at("peak_allocated")));
  EXPECT_TRUE(worst.at("host").at("initialization_peak").is_null());
  EXPECT_EQ(number(worst.at("arenas").at("pinned")), 0U);
  EXPECT_GE(number(worst.at("arenas").at("device")), number(device.at("live_peak")));
  EXPECT_EQ(result.at("gpu").at("name").as_string(), "h100-80gb");
  EXPECT_EQ(number(result.at("gpu").at("capacity_bytes")), 81559ULL << 20);
  EXPECT_GE(number(device.at("peak_reserved")), number(device.at("peak_allocated")));
  EXPECT_EQ(number(device.at("total")), number(device.at("peak_reserved")) + number(device.at("context")));
  EXPECT_TRUE(result.at("fits").as_bool());
  EXPECT_EQ(number(result.at("headroom_bytes")),
            number(result.at("gpu").at("capacity_bytes")) - number(device.at("total")));
  std::uint64_t sent = 0;
  for (const auto& operation : result.at("communication").at("by_operation").as_object())
    sent += number(operation.value());
  EXPECT_EQ(number(result.at("communication").at("bytes_sent_per_step")), sent);
}

// Without a sequence activations are not known: null, never 0.
TEST(Memcalc, WhatIsNotKnownIsNull) {
  const json::object result = plan("llama-2-7b --gpus 8 --zero 3");
  const json::object& device = result.at("worst").at("device").as_object();
  for (const char* key : {"peak_allocated", "peak_reserved", "context", "total"})
    EXPECT_TRUE(device.at(key).is_null()) << key;
  for (const char* key : {"activations", "loss", "workspace"})
    EXPECT_TRUE(device.at("at_peak").at(key).is_null()) << key;
}

TEST(Memcalc, WhatDoesNotFitSaysSo) {
  const Outcome outcome = memcalc("plan llama-2-7b --gpu a100-80gb --json");
  EXPECT_EQ(outcome.status, 1);
  const json::object result = json::parse(outcome.out).as_object();
  EXPECT_FALSE(result.at("fits").as_bool());
  EXPECT_LT(result.at("headroom_bytes").to_number<std::int64_t>(), 0);
  EXPECT_EQ(memcalc("plan llama-2-7b --gpu 200GB").status, 0);
  EXPECT_NE(memcalc("plan llama-2-7b --gpu a100-80gb").out.find("does not fit"), std::string::npos);
}

TEST(Memcalc, ThePaperEngineHasNoArenas) {
  const json::object result = plan("llama-2-7b --gpus 8 --zero 2 --engine paper");
  EXPECT_TRUE(result.at("worst").at("arenas").is_null());
  EXPECT_TRUE(result.at("setup").at("plan_hash").is_null());
  EXPECT_TRUE(result.at("worst").at("device").at("at_peak").at("gathered_parameters").is_null());
}

// 12 bytes of state for each parameter of the shard, which replicas share out; nothing else changes.
TEST(Memcalc, SavingInTheBackgroundIsHostMemory) {
  for (const char* words : {"gpt2 --gpus 8 --zero 3", "gpt2 --gpus 8 --zero 1 --replicate 2", "gpt2 --ema"}) {
    const json::object without = plan(words);
    const json::object with = plan(std::string(words) + " --save-background");
    json::object worst = with.at("worst").as_object();
    const std::uint64_t snapshot = number(worst.at("arenas").at("host"));
    const bool ema = std::string(words).ends_with("ema");
    const std::uint64_t state = number(with.at("model").at("parameters")) * (ema ? 16 : 12) / (ema ? 1 : 8);
    EXPECT_GE(snapshot, state) << words;
    EXPECT_LT(snapshot, state + state / 16) << words;  // padding
    EXPECT_EQ(number(worst.at("host").at("pageable")), snapshot);
    EXPECT_EQ(number(worst.at("host").at("total")), snapshot);
    worst.at("arenas").as_object().at("host") = 0;
    for (const char* key : {"pageable", "total"}) worst.at("host").as_object().at(key) = 0;
    EXPECT_EQ(json::serialize(worst), json::serialize(without.at("worst")));
    EXPECT_EQ(with.at("setup").at("plan_hash"), without.at("setup").at("plan_hash"));
    EXPECT_TRUE(with.at("setup").at("save_background").as_bool());
  }
  EXPECT_NE(memcalc("plan gpt2 --save-background").out.find("snapshot"), std::string::npos);
  const Outcome other = memcalc("plan gpt2 --engine fsdp2 --save-background");
  EXPECT_EQ(other.status, 2);
  EXPECT_NE(other.error.find("--save-background: is not known of engine fsdp2"), std::string::npos) << other.error;
}

TEST(Memcalc, HybridShardingSendsBetweenReplicas) {
  // Eight replicas of one rank are plain data parallelism: an all-reduce of fp32 sums, 2 x 4 psi (R-1)/R.
  const json::object result = plan("--params 7e9 --gpus 8 --replicate 8 --engine paper");
  EXPECT_EQ(number(result.at("communication").at("bytes_sent_per_step")), 49'000'000'000U);
}

TEST(Memcalc, EveryPrecisionHasItsBytes) {
  struct Row {
    const char* precision;
    std::uint64_t parameter, gradient, states;
  };
  for (const Row& row : {Row{"fp32", 4, 4, 8}, Row{"fp16-mixed", 2, 2, 12}, Row{"bf16-mixed", 2, 2, 12},
                         Row{"bf16-mixed-fp32grad", 2, 4, 12}, Row{"amp-fp16", 4, 4, 8}, Row{"amp-bf16", 4, 4, 8},
                         Row{"bf16", 2, 2, 4}, Row{"bf16-fp32state", 2, 2, 8}, Row{"fp8-mixed", 2, 4, 12}}) {
    const json::object result = plan(std::string("--params 1e9 --engine paper --precision ") + row.precision);
    const json::object& device = result.at("worst").at("device").as_object();
    EXPECT_EQ(number(device.at("parameters")), row.parameter * 1'000'000'000) << row.precision;
    EXPECT_EQ(number(device.at("gradients")), row.gradient * 1'000'000'000) << row.precision;
    EXPECT_EQ(number(device.at("optimizer_states")), row.states * 1'000'000'000) << row.precision;
  }
  const json::object mixed = plan("--params 1e9 --engine paper --moment-dtype bf16 --grad-dtype fp32");
  EXPECT_EQ(number(mixed.at("worst").at("device").at("optimizer_states")), 8'000'000'000U);
  EXPECT_EQ(number(mixed.at("worst").at("device").at("gradients")), 4'000'000'000U);
}

TEST(Memcalc, CommandLinesThatAreWrong) {
  expect_failure("plan", 2, "expected a model");
  expect_failure("plan llama-2-7b --precision fp7", 2, "bf16-mixed");
  expect_failure("plan llama-2-7b --zero 4", 2, "ZeRO stage");
  expect_failure("plan llama-2-7b --gpus 0", 2, "--gpus");
  expect_failure("plan llama-2-7b --gpus -8", 2, "--gpus");
  expect_failure("plan llama-2-7b --gpus 8.5", 2, "--gpus");
  expect_failure("plan llama-2-7b --gpus 99999999999999999999", 2, "--gpus");
  expect_failure("plan llama-2-7b --gpus 8 --replicate 3", 2, "--replicate");
  expect_failure("plan llama-2-7b --gpus 8 --zero 2 --cadence step", 2, "--cadence");
  expect_failure("plan llama-2-7b --gpu 80Gi", 2, "80Gi");
  expect_failure("plan llama-2-7b --gpu h1000", 2, "h100");
  expect_failure("plan llama-2-7b --params 7e9", 2, "exclude");
  expect_failure("plan --params seven", 2, "--params");
  expect_failure("plan llama-2-7b --optimizer adagrad", 2, "adamw");
  expect_failure("plan llama-2-7b --freeze 'no.such.*'", 2, "no.such.*");
  expect_failure("plan llama-2-7b --freeze model.embed_tokens.bias", 2, "matches no tensor");
  expect_failure("plan gpt2 --freeze lm_head.weight", 3, "transformer.wte.weight");  // tied: one parameter, two names
  expect_failure("plan llama-2-7b --seq -1", 2, "--seq");
  expect_failure("plan llama-2-7b --gpus 8 --reduction-group 0x4", 2, "--reduction-group");
  expect_failure("plan llama-2-7b --moment-dtype bool", 2, "--moment-dtype");
  expect_failure("plan llama-2-7b --engine deepspeed --prefetch 2", 2, "--prefetch: is engine shardplan's");
  expect_failure("plan llama-2-7b --engine fsdp2 --transport staged", 2, "--transport: is engine shardplan's");
  expect_failure("plan llama-2-7b --engine megatron --reduction fast", 2, "--reduction: is engine shardplan's");
  expect_failure("plan llama-2-7b --engine megatron --gpus 8 --pp 4 --virtual-stages 2 --grad-accum 6 --seq 512", 2,
                 "--grad-accum: 6 micro-batches a step do not divide into groups of --pp 4");
  expect_failure("plan llama-2-7b --param-dtype nf4", 2, "--param-dtype");
  expect_failure("plan llama-2-7b --gpu 0GB", 2, "--gpu");
  expect_failure("plan --params 9e18", 2, "too large");
  expect_failure("plan llama-2-7b --no-such-flag", 2, "--no-such-flag");
  expect_failure("guess", 2, "guess");
}

TEST(Memcalc, ModelsThatAreBad) {
  const std::string folder = testing::TempDir() + "memcalc_test." + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  const std::string file = folder + "/config.json";
  const auto expect_bad = [&](const std::string& text, const std::string& part) {
    std::ofstream(file) << text;
    expect_failure("plan " + file, 3, part);
    expect_failure("plan " + folder + " --json", 3, part);
  };
  expect_bad("", "config.json");
  expect_bad("{\"model_type\": \"llama\"", "config.json");
  expect_bad("{\"model_type\": \"lama\"}", "llama");
  expect_bad("{\"model_type\": \"llama\", \"hidden_size\": -4096}", "hidden_size");
  expect_bad("{\"model_type\": \"llama\", \"hidden_size\": \"big\"}", "hidden_size");
  expect_bad("{\"model_type\": \"llama\", \"hidden_size\": 9e18}", "");
  expect_bad("{\"model_type\": \"llama\", \"vocab_size\": 1, \"vocab_size\": 2}", "vocab_size");
  expect_failure("plan llama-2-8b", 3, "llama-2-7b");
  expect_failure("plan " + folder + "/nothing.json", 3, "nothing.json");
  std::filesystem::remove_all(folder);
}

TEST(Memcalc, ExplainAddsUp) {
  const Outcome outcome = memcalc("explain gpt2-xl --gpus 4 --zero 2 --grad-accum 4 --json");
  EXPECT_EQ(outcome.status, 0);
  const json::value result = json::parse(outcome.out);
  std::uint64_t sum = 0;
  std::uint64_t arena = 0;
  for (const json::value& line : result.at("device").as_array()) {
    (line.at("name").as_string() == "arena" ? arena : sum) += number(line.at("bytes"));
    EXPECT_FALSE(line.at("formula").as_string().empty());
    EXPECT_FALSE(line.at("source").as_string().empty());
  }
  EXPECT_EQ(sum, arena);
  const json::object same = plan("gpt2-xl --gpus 4 --zero 2 --grad-accum 4");
  EXPECT_EQ(arena, number(same.at("worst").at("arenas").at("device")));
}

TEST(Memcalc, OneRankForEachPipelineStage) {
  const json::object result = plan("llama-2-7b --gpus 16 --tp 2 --pp 4 --cp 2 --zero 1 --engine paper");
  const json::object& setup = result.at("setup").as_object();
  EXPECT_EQ(number(setup.at("world_size")), 16U);
  EXPECT_EQ(number(setup.at("data_parallel")), 1U);
  EXPECT_EQ(number(setup.at("context_parallel")), 2U);
  EXPECT_EQ(number(setup.at("tensor_parallel")), 2U);
  EXPECT_EQ(number(setup.at("pipeline_parallel")), 4U);
  EXPECT_EQ(number(setup.at("virtual_stages")), 1U);
  EXPECT_EQ(setup.at("schedule").as_string(), "1f1b");
  const json::array& ranks = result.at("ranks").as_array();
  ASSERT_EQ(ranks.size(), 4U);
  EXPECT_EQ(ranks[0].at("role").as_string(), "pipeline 0");
  EXPECT_EQ(ranks[3].at("role").as_string(), "pipeline 3");
  // 8 layers, split in two but for their norms; the last stage has a norm more than the first, and the head.
  constexpr std::uint64_t kLayers = 8ULL * ((4 * 4096 * 4096 + 3 * 4096 * 11008) / 2 + 2 * 4096);
  EXPECT_EQ(number(ranks[1].at("device").at("parameters")), 2 * kLayers);
  EXPECT_EQ(number(ranks[0].at("device").at("parameters")), 2 * (kLayers + 16000 * 4096));
  EXPECT_EQ(number(ranks[3].at("device").at("parameters")), 2 * (kLayers + 16000 * 4096 + 4096));
  EXPECT_EQ(number(ranks[0].at("count")), 4U);
  EXPECT_EQ(number(ranks[1].at("device").at("optimizer_states")), 12 * kLayers / 2) << "sharded over the context axis";
  EXPECT_EQ(result.at("worst"), ranks[3]);
}

TEST(Memcalc, AdaptersOnAQuantisedBase) {
  const json::object result =
      plan("llama-2-7b --lora-rank 8 --lora-targets q_proj,v_proj --quantize nf4 --engine paper --gpus 2 --zero 2");
  EXPECT_EQ(number(result.at("model").at("trainable_parameters")), 4'194'304U);
  EXPECT_EQ(result.at("setup").at("quantize").as_string(), "nf4");
  EXPECT_EQ(number(result.at("worst").at("device").at("gradients")), 4'194'304U);
  EXPECT_EQ(number(result.at("worst").at("device").at("optimizer_states")), 6U * 4'194'304);
  expect_failure("plan llama-2-7b --lora-targets q_proj", 2, "needs --lora-rank");
  expect_failure("plan llama-2-7b --lora-rank 8 --lora-targets query", 2, "k_proj");
  expect_failure("plan llama-2-7b --quantize int8", 2, "no frozen weights");
}

TEST(Memcalc, MeshesThatAreWrong) {
  expect_failure("plan llama-2-7b --gpus 12 --tp 8", 2, "12 is no multiple of --tp x --pp x --cp = 8 x 1 x 1 = 8");
  expect_failure("plan llama-2-7b --gpus 3 --tp 3", 2, "32 attention heads");
  expect_failure("plan llama-2-7b --gpus 64 --pp 64", 2, "32 layers are fewer than the 64 stages");
  expect_failure("plan llama-2-7b --gpus 8 --pp 2 --schedule best", 2, "zero-bubble");
  expect_failure("plan --params 7e9 --gpus 8 --tp 2", 2, "needs a model");
  expect_failure("simulate gpt2 --gpus 4 --tp 2", 2, "only the data axis can be simulated");
  expect_failure("simulate gpt2 --lora-rank 4 --lora-targets c_attn", 2, "cannot be simulated");
  expect_failure("plan gpt2 --optimizer muon", 2, "--engine deepspeed, fsdp2, megatron or paper");
}

TEST(Memcalc, ExplainAddsUpWithExpertsApart) {
  for (const std::string words : {"--engine shardplan", "--engine paper"}) {
    const Outcome outcome = memcalc("explain mixtral-8x7b --gpus 8 --ep 4 --tp 2 --zero 1 --json " + words);
    EXPECT_EQ(outcome.status, 0) << outcome.error;
    const json::value result = json::parse(outcome.out);
    const json::array& lines = result.at("device").as_array();
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i + 1 < lines.size(); ++i) sum += number(lines[i].at("bytes"));
    EXPECT_EQ(sum, number(lines.back().at("bytes"))) << words;
    const json::object worst = plan("mixtral-8x7b --gpus 8 --ep 4 --tp 2 --zero 1 " + words).at("worst").as_object();
    const json::value& total =
        words == "--engine paper" ? worst.at("device").at("model_states") : worst.at("arenas").at("device");
    EXPECT_EQ(sum, number(total)) << words;
  }
}

json::object simulate(const std::string& words) {
  const Outcome outcome = memcalc("simulate " + words + " --json");
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.status, 0);
  return json::parse(outcome.out).as_object();
}

TEST(MemcalcSimulate, TheFieldsThatScriptsRead) {
  const json::object answer = simulate("llama-2-7b --gpus 16 --zero 3 --seq 4096");
  const json::object planned = plan("llama-2-7b --gpus 16 --zero 3 --seq 4096");
  EXPECT_EQ(answer.at("schema"), "memcalc.simulate/1");
  EXPECT_EQ(answer.at("ranks"), 16);
  EXPECT_GT(number(answer.at("operations")), 16U * 100);
  EXPECT_GT(answer.at("virtual_step_seconds").as_double(), 0.1);
  EXPECT_GT(answer.at("wall_seconds").as_double(), 0);
  EXPECT_EQ(answer.at("peak_bytes").at("min"), answer.at("planned_peak_bytes"));
  EXPECT_EQ(answer.at("peak_bytes").at("max"), answer.at("planned_peak_bytes"));
  EXPECT_EQ(answer.at("planned_peak_bytes"), planned.at("worst").at("arenas").at("device"));
  // Arenas and the client's tensors, as the device counted them.
  EXPECT_EQ(answer.at("planned_peak_allocated"), planned.at("worst").at("device").at("peak_allocated"));
  EXPECT_EQ(answer.at("peak_allocated").at("min"), answer.at("planned_peak_allocated"));
  EXPECT_EQ(answer.at("peak_allocated").at("max"), answer.at("planned_peak_allocated"));
  EXPECT_GT(number(answer.at("planned_peak_allocated")), number(answer.at("planned_peak_bytes")));
  EXPECT_EQ(answer.at("bytes_sent_per_rank"), planned.at("communication").at("bytes_sent_per_step"));
  EXPECT_EQ(16 * number(answer.at("bytes_sent_per_rank")),
            number(answer.at("bytes_sent_by_link").at("node")) + number(answer.at("bytes_sent_by_link").at("network")));
  const auto seconds = [&](const char* key) { return answer.at(key).to_number<double>(); };
  EXPECT_NEAR(seconds("compute_seconds") + seconds("exposed_communication_seconds") + seconds("waiting_seconds") +
                  seconds("other_seconds"),
              seconds("virtual_step_seconds"), 1e-12);  // as decimal numbers
  EXPECT_NEAR(seconds("hidden_communication_seconds"),
              seconds("communication_seconds") - seconds("exposed_communication_seconds"), 1e-12);
  EXPECT_GT(seconds("hidden_communication_seconds"), seconds("exposed_communication_seconds"));
  EXPECT_EQ(seconds("waiting_seconds"), 0);
  EXPECT_EQ(answer.at("errors"), json::array{});
}

// Blocks see an image beside the text.
TEST(Memcalc, SimulatesWhatBlocksSee) {
  const auto seconds = [](const std::string& words) {
    return simulate(words + " --gpus 1 --gpu h200-141gb --zero 1").at("virtual_step_seconds").to_number<double>();
  };
  const double small = seconds("flux2-klein-4b --seq 512 --image-size 512x512");
  EXPECT_GT(seconds("flux2-klein-4b --seq 512 --image-size 1024x1024"), 2 * small);
  EXPECT_EQ(seconds("flux2-klein-4b --image-size 512x512"), small);
}

TEST(Memcalc, SimulatesWhatIsOffloaded) {
  const json::object answer =
      simulate("gpt2 --gpus 2 --zero 1 --seq 512 --gpu h100-80gb --offload optimizer=file@0.5,gradients=cpu");
  for (const std::string tier : {"", "host_", "file_"}) {
    for (const std::string what : {"peak_bytes", "live_peak_bytes"}) {
      const json::object& seen = answer.at(tier + what).as_object();
      EXPECT_EQ(seen.at("min"), answer.at("planned_" + tier + what)) << tier << what;
      EXPECT_EQ(seen.at("max"), answer.at("planned_" + tier + what)) << tier << what;
      EXPECT_GT(number(seen.at("min")), 0U) << tier << what;
    }
  }
  const json::object plain = simulate("gpt2 --gpus 2 --zero 1 --seq 512 --gpu h100-80gb");
  EXPECT_EQ(number(plain.at("planned_host_peak_bytes")), 0U);
  EXPECT_GT(answer.at("virtual_step_seconds").as_double(), plain.at("virtual_step_seconds").as_double());
  EXPECT_NE(json::serialize(answer.at("notes")).find("files: 6.5 GB/s read"), std::string::npos);
  EXPECT_EQ(json::serialize(plain.at("notes")).find("files:"), std::string::npos);
}

// What has no forward in a profile is simulated without its activations, and that is said.
TEST(MemcalcSimulate, UnknownActivationsAreNull) {
  const json::object answer = simulate("gpt2 --gpus 2 --seq 512 --recompute invert");
  EXPECT_TRUE(answer.at("peak_allocated").is_null());
  EXPECT_TRUE(answer.at("planned_peak_allocated").is_null());
  EXPECT_NE(json::serialize(answer.at("notes")).find("activations are not counted"), std::string::npos);
}

TEST(MemcalcSimulate, HybridShardingSplitsBetweenNodeAndNetwork) {
  const json::object answer = simulate("gpt2 --gpus 32 --zero 3 --replicate 4 --seq 512");
  // Gathers and reductions stay inside the nodes; only the sums of shards cross the network.
  const json::object planned = plan("gpt2 --gpus 32 --zero 3 --replicate 4");
  const json::object& by_operation = planned.at("communication").at("by_operation").as_object();
  const std::uint64_t inside =
      32 * (number(by_operation.at("gather_parameters")) + number(by_operation.at("reduce_gradients")));
  EXPECT_EQ(number(answer.at("bytes_sent_by_link").at("node")), inside);
  EXPECT_LE(number(answer.at("bytes_sent_by_link").at("network")),
            32 * number(by_operation.at("reduce_among_replicas")));
  EXPECT_GT(number(answer.at("bytes_sent_by_link").at("network")), 0U);
}

TEST(MemcalcSimulate, ComparesStagesAndWritesWhatIsAskedFor) {
  const std::string folder = testing::TempDir();
  const std::string stages = folder + "stages.svg";
  const json::object answer = simulate("gpt2 --gpus 8 --seq 512 --compare-stages --plot " + stages);
  ASSERT_EQ(answer.at("stages").as_array().size(), 4U);
  for (int stage = 0; stage < 4; ++stage) {
    const json::object& row = answer.at("stages").as_array()[static_cast<std::size_t>(stage)].as_object();
    EXPECT_EQ(row.at("zero_stage"), stage);
    EXPECT_EQ(row.at("peak_bytes").at("max"), row.at("planned_peak_bytes"));
  }
  EXPECT_NE(read_file(stages).find("<svg"), std::string::npos);

  const std::string memory = folder + "memory.svg";
  const std::string trace = folder + "trace.json";
  simulate("gpt2 --gpus 2 --zero 3 --seq 512 --plot " + memory + " --trace " + trace);
  EXPECT_NE(read_file(memory).find("backward"), std::string::npos);
  const json::value events = json::parse(read_file(trace)).at("traceEvents");
  EXPECT_GT(events.as_array().size(), 500U);
  for (const std::string& file : {stages, memory, trace}) std::filesystem::remove(file);
}

TEST(MemcalcSimulate, FaultsAreReportedByEachRank) {
  const json::object answer = simulate("gpt2 --gpus 4 --zero 3 --seq 512 --fault kill,rank=2,operation=60");
  ASSERT_EQ(answer.at("errors").as_array().size(), 4U);
  for (const json::value& error : answer.at("errors").as_array()) {
    const std::string text(error.at("error").as_string());
    EXPECT_TRUE(text == "killed" || text.find("rank 2") == 0) << text;
  }
  EXPECT_EQ(simulate("gpt2 --gpus 4 --zero 2 --seq 512 --fault random --seed 3").at("faults"),
            simulate("gpt2 --gpus 4 --zero 2 --seq 512 --fault random --seed 3").at("faults"));
  EXPECT_GT(simulate("gpt2 --gpus 4 --zero 3 --seq 512 --fault slow-rank,rank=1,factor=3")
                .at("virtual_step_seconds")
                .as_double(),
            2 * simulate("gpt2 --gpus 4 --zero 3 --seq 512").at("virtual_step_seconds").as_double());
}

TEST(MemcalcSimulate, FaultsThatDoNotHappenAreSaidSo) {
  const std::string words = "gpt2 --gpus 4 --zero 3 --seq 512 --fault stall,operation=100000,seconds=5 ";
  const json::object answer = simulate(words + "--fault slow-rank,factor=2");
  EXPECT_EQ(answer.at("faults_happened"), (json::array{false, true}));
  const std::string text = memcalc("simulate " + words).out;
  EXPECT_NE(text.find("seconds=5: did not happen"), std::string::npos) << text;
  for (int seed = 0; seed < 20; ++seed) {
    const json::object random =
        simulate("gpt2 --gpus 4 --zero 1 --seq 512 --fault random --seed " + std::to_string(seed));
    EXPECT_EQ(random.at("faults_happened"), json::array{true}) << json::serialize(random.at("faults"));
  }
}

TEST(MemcalcSimulate, TheGpuDecidesTheClusterAndItsSizeTheMemory) {
  const json::object sized = simulate("gpt2 --gpus 2 --seq 512 --gpu 80GiB");
  EXPECT_EQ(sized.at("cluster").at("gpu"), "h100-80gb");
  EXPECT_NE(json::serialize(sized.at("notes")).find("--gpu 80GiB is a size"), std::string::npos);
  const Outcome small = memcalc("simulate gpt2 --gpus 2 --seq 512 --gpu 1GB --cluster b200 --json");
  EXPECT_EQ(small.status, 1) << small.error;
  EXPECT_EQ(json::parse(small.out).at("cluster").at("gpu"), "b200-180gb");
  EXPECT_EQ(simulate("gpt2 --gpus 2 --seq 512 --gpu a100 --cluster dgx-a100").at("cluster").at("name"), "a100");
  expect_failure("simulate gpt2 --gpu h100 --cluster b200", 2, "--gpu: the cluster b200 has b200-180gb");
}

TEST(MemcalcSimulate, WhatCannotBeSimulatedIsSaidSo) {
  expect_failure("simulate --params 7e9", 2, "--params: has no units to simulate");
  expect_failure("simulate gpt2 --engine paper", 2, "--engine: only shardplan can be simulated");
  expect_failure("simulate gpt2 --gpus 70000", 2, "--gpus: expected at most 32000 to simulate");
  expect_failure("simulate gpt2 --cluster h10", 2, "--cluster: 'h10' is no known cluster: the nearest are h100");
  expect_failure("simulate gpt2 --fault explode", 2, "--fault: 'explode' is no fault: expected kill, stall");
  expect_failure("simulate gpt2 --fault kill,rank=1", 2, "--fault: rank: expected less than 1, found 1");
  expect_failure("simulate gpt2 --fault kill,when=1", 2, "--fault: 'when' is not known");
  expect_failure("simulate gpt2 --fault stall,seconds=long", 2, "--fault: seconds: expected a number from 0");
  expect_failure("simulate gpt2 --compare-stages --trace t.json", 2, "--trace: is of one stage");
  expect_failure("simulate gpt2 --plot /nowhere/at/all.svg", 3, "/nowhere/at/all.svg: cannot be opened for writing");
}

TEST(Memcalc, Lists) {
  const json::value models = json::parse(memcalc("models --json").out);
  EXPECT_GE(models.at("models").as_array().size(), 18U);
  const json::value gpus = json::parse(memcalc("gpus --json").out);
  EXPECT_GE(gpus.at("gpus").as_array().size(), 40U);
  EXPECT_NE(memcalc("models").out.find("llama-2-7b"), std::string::npos);
  EXPECT_NE(memcalc("gpus").out.find("h100-80gb"), std::string::npos);
}

TEST(Memcalc, HelpAndCompletion) {
  const Outcome help = memcalc("plan --help");
  EXPECT_EQ(help.status, 0);
  for (const char* flag : {"--gpus", "--zero", "--precision", "--gpu", "--json", "Exit status"}) {
    EXPECT_NE(help.out.find(flag), std::string::npos) << flag;
  }
  const Outcome completion = memcalc("completion");
  EXPECT_NE(completion.out.find("--reduction-group"), std::string::npos);
  EXPECT_EQ(std::system(("bash -c 'eval \"$(" + std::string(MEMCALC) + " completion)\"'").c_str()), 0);
}

TEST(Memcalc, NoColourInAPipe) {
  EXPECT_EQ(memcalc("plan gpt2").out.find('\033'), std::string::npos);
}

// The page on --json names every field of a set-up.
TEST(MemcalcPlan, ThePageNamesEveryFieldOfASetup) {
  const std::string page = read_file(JSON_PAGE);
  const json::object setup = plan("llama-3.1-8b").at("setup").as_object();
  for (const auto& field : setup) {
    EXPECT_NE(page.find("`" + std::string(field.key()) + "`"), std::string::npos) << field.key();
  }
}

}  // namespace
