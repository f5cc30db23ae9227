// --ds-config and --export: what files say, what flags win over, how both fail.
#include <gtest/gtest.h>

#include "tests/support/temporary_folder.h"
#include "tests/tools/memcalc/program.h"

namespace {

using namespace shardplan::test;
namespace json = boost::json;

class ConfigFiles : public testing::Test {
 protected:
  // The path of a new file.
  std::string file(const std::string& text) { return folder_.write(std::to_string(++files_) + ".json", text); }
  static json::object setup(const std::string& words) { return plan(words).at("setup").as_object(); }

  shardplan::test_support::TemporaryFolder folder_;
  int files_ = 0;
};

const std::string kZero3 = std::string(DS_CONFIGS) + "/zero3.json";
const std::string kOffload = std::string(DS_CONFIGS) + "/zero3_offload.json";

TEST_F(ConfigFiles, SayWhatNoFlagDoes) {
  const json::object said = setup("llama-2-7b --gpus 8 --ds-config " + kZero3);
  EXPECT_EQ(said.at("engine").as_string(), "deepspeed");
  EXPECT_EQ(number(said.at("zero_stage")), 3U);
  EXPECT_EQ(said.at("precision").as_string(), "bf16-mixed");
  EXPECT_EQ(said.at("grad_accum_dtype").as_string(), "bf16");
  EXPECT_EQ(number(said.at("micro_batch")), 2U);
  EXPECT_EQ(number(said.at("grad_accum")), 4U);
  EXPECT_TRUE(said.at("offload").is_null());
  const json::object offload = setup("llama-2-7b --gpus 8 --micro-batch 4 --ds-config " + kOffload);
  EXPECT_EQ(offload.at("offload").as_string(), "optimizer=cpu,parameters=cpu");
  EXPECT_EQ(number(offload.at("micro_batch")), 4U);
  EXPECT_EQ(offload.at("precision").as_string(), "bf16-mixed");
}

TEST_F(ConfigFiles, FlagsWin) {
  const std::string path = file(R"({"bf16": {"enabled": true}, "data_types": {"grad_accum_dtype": "fp32"},
      "optimizer": {"type": "Lion"}, "train_micro_batch_size_per_gpu": 4,
      "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 4, "offload_optimizer": {"device": "cpu"},
                            "offload_param": {"device": "cpu"}}})");
  const json::object file_says = setup("gpt2 --gpus 8 --ds-config " + path);
  EXPECT_EQ(file_says.at("precision").as_string(), "bf16-mixed-fp32grad");
  EXPECT_EQ(file_says.at("optimizer").as_string(), "lion");
  EXPECT_EQ(number(file_says.at("hpz")), 4U);
  const json::object flags_say = setup("gpt2 --gpus 8 --ds-config " + path +
                                       " --zero 3 --precision fp16-mixed --optimizer adamw --micro-batch 2 --hpz 2"
                                       " --offload optimizer=cpu");
  EXPECT_EQ(flags_say.at("precision").as_string(), "fp16-mixed");
  EXPECT_EQ(flags_say.at("grad_dtype").as_string(), "fp16");
  EXPECT_EQ(flags_say.at("optimizer").as_string(), "adamw");
  EXPECT_EQ(number(flags_say.at("micro_batch")), 2U);
  EXPECT_EQ(number(flags_say.at("hpz")), 2U);
  EXPECT_EQ(flags_say.at("offload").as_string(), "optimizer=cpu");
  const json::object paper = setup("gpt2 --gpus 8 --engine paper --ds-config " + kZero3);
  EXPECT_EQ(paper.at("engine").as_string(), "paper");
  EXPECT_EQ(number(paper.at("zero_stage")), 3U);
}

TEST_F(ConfigFiles, AFlagAgainstTheGlobalBatchWins) {
  const json::object result = plan("gpt2 --gpus 8 --micro-batch 1 --ds-config " + kZero3);
  EXPECT_EQ(number(result.at("setup").at("micro_batch")), 1U);
  EXPECT_EQ(number(result.at("setup").at("grad_accum")), 4U);
  EXPECT_NE(json::serialize(result.at("notes")).find("train_batch_size is not used"), std::string::npos);
  // Where the file leaves accumulation open, it follows.
  const std::string path = file(R"({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8})");
  EXPECT_EQ(number(setup("gpt2 --gpus 8 --micro-batch 2 --ds-config " + path).at("grad_accum")), 4U);
}

TEST_F(ConfigFiles, OneLineSaysFileAndKey) {
  const auto refused = [&](const std::string& text, const std::string& key, const std::string& problem) {
    const std::string path = file(text);
    expect_failure("plan gpt2 --gpus 4 --ds-config " + path, 3, path + ": " + key + ": " + problem);
  };
  refused(R"({"zero_optimization": {"stage": 7}})", "zero_optimization.stage", "expected a stage from 0 to 3");
  refused(R"({"zero_optimization": {"stag": 1}})", "zero_optimization.stag", "is not a key that DeepSpeed knows here");
  refused(R"({"train_batch_size": 30})", "train_batch_size", "expected micro-batch x accumulation x data ranks");
  refused(R"({"train_micro_batch_size_per_gpu": 18446744073709551615, "train_batch_size": 5})", "train_batch_size",
          "expected micro-batch x accumulation x data ranks");
  // What only the engine can judge is told as the file's, too.
  refused(R"({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}})",
          "zero_optimization.offload_param", "parameters can be offloaded at stage 3 only");
  refused(R"({"zero_optimization": {"stage": 3, "mics_shard_size": 3}})", "zero_optimization.mics_shard_size",
          "3 does not divide the 4 ranks");
  refused(R"({"tensor_parallel": {"autotp_size": 0}, "sequence_parallel_size": 0})", "sequence_parallel_size",
          "expected a positive integer");
  expect_failure("plan gpt2 --gpus 4 --ds-config " + file("{"), 3, "line 1, column");
  expect_failure("plan gpt2 --ds-config " + folder_.path() + "/none.json", 3, "none.json");
  // A flag stays a flag's error.
  expect_failure("plan gpt2 --gpus 8 --mics 3 --ds-config " + kZero3, 2, "--mics: 3 does not divide");
  expect_failure("plan gpt2 --ds-config " + kZero3 + " --ds-config " + kOffload, 2, "--ds-config: is given twice");
}

TEST_F(ConfigFiles, WhatIsSimulatedIsOurOwnOptimizer) {
  const Outcome outcome = memcalc("simulate gpt2 --gpus 8 --seq 128 --json --ds-config " + kZero3);
  EXPECT_EQ(outcome.status, 0) << outcome.error;
  const json::object result = json::parse(outcome.out).as_object();
  EXPECT_EQ(result.at("setup").at("engine").as_string(), "shardplan");
  EXPECT_EQ(number(result.at("setup").at("zero_stage")), 3U);
  EXPECT_EQ(number(result.at("setup").at("grad_accum")), 4U);
}

TEST_F(ConfigFiles, WhatIsExportedReadsBack) {
  const std::string words = "llama-2-7b --gpus 8 --zero 3 --hpz 4 --precision bf16-mixed-fp32grad --grad-accum 2";
  const Outcome exported = memcalc("plan " + words + " --export deepspeed");
  EXPECT_EQ(exported.status, 0);
  const json::object there = plan(words + " --engine deepspeed");
  const json::object back = plan("llama-2-7b --gpus 8 --ds-config " + file(exported.out));
  EXPECT_EQ(back.at("setup"), there.at("setup"));
  EXPECT_EQ(back.at("ranks"), there.at("ranks"));
  EXPECT_EQ(back.at("communication"), there.at("communication"));
}

TEST_F(ConfigFiles, WhatCannotBeExportedIsRefused) {
  expect_failure("plan gpt2 --gpus 8 --zero 3 --replicate 2 --export deepspeed", 2, "--replicate: a ds_config.json");
  expect_failure("plan gpt2 --engine fsdp2 --export deepspeed", 2, "expected --engine deepspeed, found fsdp2");
  expect_failure("plan gpt2 --gpus 8 --zero 3 --offload optimizer=nvme --export deepspeed", 2, "names the folder");
  const Outcome dropped = memcalc("plan gpt2 --seq 128 --recompute full --loss eager --export deepspeed");
  EXPECT_EQ(dropped.status, 0);
  EXPECT_NE(dropped.error.find("note: the file does not say --recompute full"), std::string::npos) << dropped.error;
  EXPECT_EQ(memcalc("plan gpt2 --seq 128 --recompute full --export fsdp").error.find("--recompute"), std::string::npos);
  expect_failure("plan gpt2 --export cloud", 2, "'cloud' is not known");
}

TEST_F(ConfigFiles, AccelerateSaysWhichEngineItLaunches) {
  const std::string path = file(
      "distributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 16\nfsdp_config:\n  fsdp_version: 2\n"
      "  fsdp_reshard_after_forward: false\n");
  const json::object said = setup("gpt2 --accelerate-config " + path);
  EXPECT_EQ(said.at("engine").as_string(), "fsdp2");
  EXPECT_EQ(number(said.at("zero_stage")), 2U);
  EXPECT_EQ(number(said.at("world_size")), 16U);
  EXPECT_EQ(number(setup("gpt2 --gpus 4 --accelerate-config " + path).at("world_size")), 4U);
  const std::string wrong = file("distributed_type: FSDP\nnum_proceses: 8\n");
  expect_failure("plan gpt2 --accelerate-config " + wrong, 3, wrong + ": num_proceses: is not a key of accelerate");
  expect_failure("plan gpt2 --ds-config " + kZero3 + " --accelerate-config " + path, 2, "exclude each other");
}

TEST_F(ConfigFiles, MegatronsArgumentsStandForTheModel) {
  const std::string path = file(
      "{\"world_size\": 8, \"args\": {\"num-layers\": 4, \"hidden-size\": 64, \"num-attention-heads\": 4, "
      "\"max-position-embeddings\": 32, \"vocab-size\": 1000, \"tensor-model-parallel-size\": 2, \"bf16\": true, "
      "\"micro-batch-size\": 2, \"global-batch-size\": 16, \"use-distributed-optimizer\": true}}");
  const json::object result = plan("--megatron-args " + path);
  const json::object& said = result.at("setup").as_object();
  EXPECT_EQ(said.at("engine").as_string(), "megatron");
  EXPECT_EQ(said.at("precision").as_string(), "bf16-mixed-fp32grad");
  EXPECT_EQ(number(said.at("zero_stage")), 1U);
  EXPECT_EQ(number(said.at("tensor_parallel")), 2U);
  EXPECT_EQ(number(said.at("micro_batch")), 2U);
  EXPECT_EQ(number(said.at("grad_accum")), 2U);
  EXPECT_EQ(number(result.at("model").at("parameters")), 1032U * 64 + 4 * (12 * 64 * 64 + 13 * 64) + 2 * 64);
  expect_failure("plan gpt2 --megatron-args " + path, 2, "--megatron-args: stands for MODEL");
  const std::string wrong = file("num-layers: 4\nhidden-size: sixty\n");
  expect_failure("plan --megatron-args " + wrong, 3, wrong + ": hidden-size: expected an integer");
}

TEST_F(ConfigFiles, ExportsOfAccelerateAndMegatronReadBack) {
  const auto read_back = [&](const std::string& model, const std::string& words, const std::string& format,
                             const std::string& flag) {
    const Outcome exported = memcalc("plan " + model + " " + words + " --export " + format);
    EXPECT_EQ(exported.status, 0) << exported.error;
    const std::string path = file(exported.out);
    const json::object there = plan(model + " " + words);
    const json::object back = plan((flag == "--megatron-args" ? "" : model + " ") + flag + " " + path);
    for (const char* key :
         {"world_size", "engine", "zero_stage", "precision", "tensor_parallel", "replicate", "grad_accum", "offload"}) {
      EXPECT_EQ(back.at("setup").at(key), there.at("setup").at(key)) << words << ": " << key << "\n" << exported.out;
    }
    EXPECT_EQ(back.at("model").at("parameters"), there.at("model").at("parameters")) << words;
  };
  read_back("gpt2", "--engine fsdp2 --gpus 16 --zero 3 --replicate 2", "fsdp", "--accelerate-config");
  read_back("gpt2", "--engine fsdp2 --gpus 8 --zero 2 --offload parameters=cpu", "accelerate", "--accelerate-config");
  read_back("gpt2", "--engine deepspeed --gpus 8 --zero 3 --grad-accum 4", "accelerate", "--accelerate-config");
  read_back("llama-2-7b", "--engine megatron --gpus 8 --tp 2 --zero 1 --precision bf16-mixed-fp32grad --grad-accum 4",
            "megatron", "--megatron-args");
  expect_failure("plan mamba-130m --engine megatron --precision bf16-mixed-fp32grad --export megatron", 3,
                 "Megatron-LM builds no such model");
  expect_failure("plan gpt2 --zero 1 --export accelerate", 2, "expected fsdp2, deepspeed, megatron or paper");
}

}  // namespace
