// memcalc fit: its answers against memcalc plan, asked one set-up at a time.
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/tools/memcalc/program.h"

namespace shardplan::test {
namespace {

namespace json = boost::json;

json::object ask(const std::string& words, int status = 0) {
  const Outcome outcome = memcalc(words + " --json");
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.status, status) << words;
  return json::parse(outcome.out).as_object();
}

std::uint64_t number(const json::value& value) {
  return value.to_number<std::uint64_t>();
}

std::uint64_t total(const json::object& planned) {
  return number(planned.at("worst").at("device").at("total"));
}

std::string words_of(const json::object& setup) {
  const std::uint64_t tensor = number(setup.at("tensor_parallel"));
  return "--zero " + std::to_string(number(setup.at("zero_stage"))) + " --tp " + std::to_string(tensor) +
         (tensor > 1 ? " --sequence-parallel" : "") + " --pp " + std::to_string(number(setup.at("pipeline_parallel"))) +
         " --micro-batch " + std::to_string(number(setup.at("micro_batch"))) + " --grad-accum " +
         std::to_string(number(setup.at("grad_accum"))) + " --recompute " +
         std::string(setup.at("recompute").as_string()) +
         (setup.at("offload").is_null() ? "" : " --offload " + std::string(setup.at("offload").as_string()));
}

// Those of engine shardplan's set-ups, as flags.
const std::vector<std::string> kOffloads{"", " --offload optimizer=cpu", " --offload optimizer=cpu,gradients=cpu",
                                         " --offload optimizer=cpu,gradients=cpu,parameters=cpu"};

class FitTest : public testing::Test {
 protected:
  const std::string model_ = "tinyllama-1.1b";
};

// Each set-up is decided in one of three ways.
void expect_all_decided(const json::object& fit) {
  EXPECT_EQ(number(fit.at("decided")),
            fit.at("plans").as_array().size() + number(fit.at("rejections")) + number(fit.at("slower")));
  std::uint64_t rejections = 0;
  for (const auto& reason : fit.at("rejections_by_reason").as_object()) rejections += number(reason.value());
  EXPECT_EQ(number(fit.at("rejections")), rejections);
}

// Every set-up of a small space, asked of plan one by one: the same fit, and no other.
TEST_F(FitTest, BestIsWhatBruteForceFinds) {
  const std::string small = model_ + " --gpus 2 --gpu 30GiB --seq 2048";
  const std::uint64_t capacity = 30ULL << 30;
  const json::object fit = ask("fit " + small + " --tp 1 --pp 1 --cp 1 --global-batch 16 --plans 1000 --rejected 1000");
  EXPECT_EQ(fit.at("schema").as_string(), "memcalc.fit/1");
  expect_all_decided(fit);
  std::set<std::string> found;
  double last = 0;
  for (const json::value& plan : fit.at("plans").as_array()) {
    found.insert(words_of(plan.at("setup").as_object()));
    EXPECT_EQ(number(plan.at("needed_bytes")), number(plan.at("worst").at("device").at("total")));
    EXPECT_GE(plan.at("step_seconds").as_double(), last);
    last = plan.at("step_seconds").as_double();
  }
  std::set<std::string> expected;
  std::uint64_t all = 0;
  for (int stage = 0; stage <= 3; ++stage) {
    for (const char* recompute : {"none", "every=2", "full"}) {
      for (std::uint64_t micro_batch = 1; micro_batch <= 8; micro_batch *= 2) {
        for (const std::string& offload : kOffloads) {
          const std::string words = "--zero " + std::to_string(stage) + " --tp 1 --pp 1 --micro-batch " +
                                    std::to_string(micro_batch) + " --grad-accum " + std::to_string(8 / micro_batch) +
                                    " --recompute " + recompute + offload;
          ++all;
          const Outcome planned = memcalc("plan " + small + " " + words + " --json");
          if (total(json::parse(planned.out).as_object()) <= capacity) expected.insert(words);
        }
      }
    }
  }
  EXPECT_EQ(found, expected);
  EXPECT_GT(expected.size(), 3U);
  EXPECT_LT(expected.size(), all);
  EXPECT_EQ(number(fit.at("decided")), all);
  EXPECT_LE(number(fit.at("evaluated")), all);
}

// The same over tensor and pipeline ranks, of which the fastest do not fit.
TEST_F(FitTest, BestOverRanksIsWhatBruteForceFinds) {
  const std::string small = model_ + " --gpus 4 --gpu 22GiB --seq 4096 --profile megatron";
  const std::uint64_t capacity = 22ULL << 30;
  const json::object fit =
      ask("fit " + small + " --zero 1 --cp 1 --virtual-stages 1 --global-batch 8 --plans 1000 --rejected 0");
  expect_all_decided(fit);
  std::set<std::string> found;
  for (const json::value& plan : fit.at("plans").as_array()) found.insert(words_of(plan.at("setup").as_object()));
  std::set<std::string> expected;
  std::uint64_t all = 0;
  for (const auto& [tensor, pipeline] :
       std::vector<std::pair<std::uint64_t, std::uint64_t>>{{1, 1}, {1, 2}, {1, 4}, {2, 1}, {2, 2}, {4, 1}}) {
    const std::uint64_t sequences = 8 / (4 / (tensor * pipeline));
    for (const char* recompute : {"none", "selective", "full"}) {
      for (std::uint64_t micro_batch = 1; micro_batch <= sequences; micro_batch *= 2) {
        for (const std::string& offload : kOffloads) {
          const std::string words = "--zero 1 --tp " + std::to_string(tensor) +
                                    (tensor > 1 ? " --sequence-parallel" : "") + " --pp " + std::to_string(pipeline) +
                                    " --micro-batch " + std::to_string(micro_batch) + " --grad-accum " +
                                    std::to_string(sequences / micro_batch) + " --recompute " + recompute + offload;
          ++all;
          const Outcome planned = memcalc("plan " + small + " " + words + " --json");
          if (total(json::parse(planned.out).as_object()) <= capacity) expected.insert(words);
        }
      }
    }
  }
  EXPECT_EQ(found, expected);
  EXPECT_GT(expected.size(), 3U);
  EXPECT_LT(expected.size(), all);
  EXPECT_EQ(number(fit.at("decided")), all);
}

// What is slower than the plans that are asked for is not sized, and changes none of them.
TEST_F(FitTest, FewPlansAreTheFirstOfMany) {
  const std::string space = "fit " + model_ + " --gpus 4 --gpu 24GiB --seq 4096 --profile megatron --global-batch 16";
  const json::object many = ask(space + " --plans 100000");
  const json::object few = ask(space + " --plans 5");
  expect_all_decided(few);
  expect_all_decided(many);
  EXPECT_EQ(number(few.at("decided")), number(many.at("decided")));
  EXPECT_EQ(number(many.at("slower")), 0U);
  EXPECT_LT(number(few.at("evaluated")), number(many.at("evaluated")));
  ASSERT_EQ(few.at("plans").as_array().size(), 5U);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(few.at("plans").at(i).at("words"), many.at("plans").at(i).at("words"));
}

// Every axis is varied, and every set-up that is listed is one that plan accepts.
TEST_F(FitTest, VariesAllAxes) {
  const json::object fit =
      ask("fit mixtral-8x7b --gpus 64 --gpu h100-80gb --seq 8192 --engine megatron --global-batch 512 --plans 200");
  std::map<std::string, std::set<std::string>> values;
  for (const json::value& plan : fit.at("plans").as_array()) {
    for (const char* axis : {"zero_stage", "tensor_parallel", "pipeline_parallel", "context_parallel",
                             "expert_parallel", "micro_batch", "recompute"}) {
      values[axis].insert(json::serialize(plan.at("setup").at(axis)));
    }
  }
  for (const auto& [axis, found] : values) EXPECT_GT(found.size(), 1U) << axis;
}

// What fits only with states in host memory is found, and is slower than the same on a GPU that holds them.
TEST_F(FitTest, OffloadIsFoundAndTimed) {
  const std::string setup = "fit " + model_ + " --gpus 1 --seq 1024 --micro-batch 1 --recompute none";
  const json::object found = ask(setup + " --gpu 14GiB");
  ASSERT_FALSE(found.at("plans").as_array().empty());
  for (const json::value& plan : found.at("plans").as_array()) EXPECT_FALSE(plan.at("setup").at("offload").is_null());
  const json::object roomy = ask(setup + " --gpu 40GiB");
  EXPECT_TRUE(roomy.at("plans").at(0).at("setup").at("offload").is_null());
  EXPECT_GT(found.at("plans").at(0).at("step_seconds").as_double(),
            1.1 * roomy.at("plans").at(0).at("step_seconds").as_double());
  const json::object said = ask(setup + " --gpu 40GiB --offload gradients=cpu");
  for (const json::value& plan : said.at("plans").as_array())
    EXPECT_EQ(plan.at("setup").at("offload").as_string(), "gradients=cpu");
}

// Other engines' offload is sized, and a note says that it is not in the times.
TEST_F(FitTest, OffloadOfOtherEnginesIsNotTimed) {
  const json::object fit =
      ask("fit " + model_ + " --gpus 1 --gpu 14GiB --seq 1024 --engine deepspeed --offload optimizer=cpu");
  ASSERT_FALSE(fit.at("plans").as_array().empty());
  const auto& notes = fit.at("notes").as_array();
  EXPECT_TRUE(std::any_of(notes.begin(), notes.end(), [](const json::value& note) {
    return note.as_string().find("--offload optimizer=cpu") != json::string::npos;
  }));
}

TEST_F(FitTest, TheLargestMicroBatchFitsAndOneMoreDoesNot) {
  const std::string setup = model_ + " --gpus 4 --zero 2 --gpu 40GiB --seq 1024";
  const json::object fit = ask("fit " + setup + " --ask micro-batch");
  const std::uint64_t largest = number(fit.at("plans").at(0).at("setup").at("micro_batch"));
  EXPECT_GT(largest, 1U);
  const auto planned = [&](std::uint64_t size) {
    const Outcome outcome = memcalc("plan " + setup + " --micro-batch " + std::to_string(size) + " --json");
    return total(json::parse(outcome.out).as_object());
  };
  EXPECT_LE(planned(largest), 40ULL << 30);
  EXPECT_GT(planned(largest + 1), 40ULL << 30);
}

// An actor and its reference: what plan says of both, and a forward beside a step, which is about three.
TEST_F(FitTest, SeveralModels) {
  const std::string setup = model_ + " " + model_ + ":frozen --gpus 4 --zero 2 --gpu 40GiB --seq 1024";
  const json::object fit = ask("fit " + setup + " --ask micro-batch");
  const std::uint64_t largest = number(fit.at("plans").at(0).at("setup").at("micro_batch"));
  EXPECT_GT(largest, 1U);
  EXPECT_EQ(fit.at("models").as_array().size(), 2U);
  const auto planned = [&](std::uint64_t size) {
    return json::parse(memcalc("plan " + setup + " --micro-batch " + std::to_string(size) + " --json").out).as_object();
  };
  EXPECT_EQ(total(planned(largest)), number(fit.at("plans").at(0).at("needed_bytes")));
  EXPECT_LE(total(planned(largest)), 40ULL << 30);
  EXPECT_GT(total(planned(largest + 1)), 40ULL << 30);

  const std::string step =
      " --gpus 1 --zero 0 --gpu h100-80gb --cluster h100 --seq 2048 --micro-batch 4 --recompute none";
  const auto seconds = [&](const std::string& models, const char* part) {
    return ask("fit " + models + step + " --offload optimizer=cpu --global-batch 4")
        .at("plans")
        .at(0)
        .at(part)
        .as_double();
  };
  const std::string reference = model_ + ":frozen";
  const double forward = seconds(reference, "computing_seconds") / seconds(model_, "computing_seconds");
  // A backward is two forwards of products, two and a half of attention, one and a half of what moves bytes alone.
  EXPECT_GT(forward, 1 / 3.5);
  EXPECT_LT(forward, 1 / 2.5);
  EXPECT_EQ(seconds(reference, "updating_seconds"), 0);
  const json::object again =
      ask("fit " + reference + " --gpu h100-80gb --seq 2048 --gpus 1 --global-batch 4 --recompute full");
  EXPECT_EQ(again.at("plans").at(0).at("step_seconds"),
            ask("fit " + reference + " --gpu h100-80gb --seq 2048 --gpus 1 --global-batch 4")
                .at("plans")
                .at(0)
                .at("step_seconds"));
  EXPECT_DOUBLE_EQ(seconds(model_ + " " + reference, "step_seconds"),
                   seconds(model_, "step_seconds") + seconds(reference, "step_seconds"));
}

// What sees images alone has no sequence to be told.
TEST_F(FitTest, ImagesNeedNoSequence) {
  const json::object fit = ask("fit vit-large-patch16-224 --gpus 8 --gpu h100-80gb --global-batch 1024 --plans 1");
  // 304 million parameters and 197 tokens: 6 flops of each for each, at less than the peak of eight GPUs.
  EXPECT_GT(fit.at("plans").at(0).at("step_seconds").as_double(), 1024 * 197 * 6 * 304e6 / 8 / 989e12);
  EXPECT_LT(fit.at("plans").at(0).at("step_seconds").as_double(), 4 * 1024 * 197 * 6 * 304e6 / 8 / 989e12);
  expect_failure("fit gpt2 --gpus 8 --gpu h100-80gb", 2, "--seq");
  expect_failure("fit vit-base-patch16-224 --gpus 8 --gpu h100-80gb --ask seq", 2, "reads no text");
}

// What can be computed again in another way than block by block is tried in that way.
TEST_F(FitTest, FlowsAreRecomputedTheirWay) {
  const std::string path = testing::TempDir() + "memcalc_fit_cnf.json";
  std::ofstream(path) << R"({"model_type": "cnf", "data_dims": 63, "hidden_dims": [860, 860], "time_steps": 10})";
  const std::string setup = "fit " + path + " --gpus 1 --gpu 24GiB --cluster h100 --precision fp32 --micro-batch 64000";
  EXPECT_EQ(ask(setup + " --global-batch 64000").at("plans").at(0).at("setup").at("recompute").as_string(), "adjoint");
  const json::object cheapest = ask(setup + " --ask cheapest");
  const json::array& plans = cheapest.at("plans").as_array();
  EXPECT_TRUE(std::any_of(plans.begin(), plans.end(), [](const json::value& plan) {
    return plan.at("change").as_string() == "--recompute adjoint";
  }));
}

TEST_F(FitTest, TheFewestGpus) {
  const json::object fit = ask("fit " + model_ + " --zero 3 --gpu 16GiB --seq 1024 --recompute full --ask gpus");
  const std::uint64_t fewest = number(fit.at("plans").at(0).at("setup").at("world_size"));
  EXPECT_GT(fewest, 1U);
  const auto planned = [&](std::uint64_t gpus) {
    return memcalc("plan " + model_ + " --zero 3 --gpu 16GiB --seq 1024 --recompute full --gpus " +
                   std::to_string(gpus));
  };
  EXPECT_EQ(planned(fewest).status, 0);
  EXPECT_EQ(planned(fewest - 1).status, 1);
}

TEST_F(FitTest, TheCheapestChangeSavesWhatItSays) {
  const std::string setup = model_ + " --gpus 2 --gpu 24GiB --seq 4096";
  const json::object fit = ask("fit " + setup + " --micro-batch 2 --ask cheapest");
  const json::object& plan = fit.at("plans").at(0).as_object();
  const std::string change(plan.at("change").as_string());
  const bool same_size = change.find("--micro-batch") == std::string::npos;
  const json::object before = json::parse(memcalc("plan " + setup + " --micro-batch 2 --json").out).as_object();
  const json::object after =
      json::parse(memcalc("plan " + setup + (same_size ? " --micro-batch 2 " : " ") + change + " --json").out)
          .as_object();
  EXPECT_EQ(number(plan.at("saved_bytes")), total(before) - total(after)) << change;
  EXPECT_LE(total(after), 24ULL << 30);
  EXPECT_GT(total(before), 24ULL << 30);
}

TEST_F(FitTest, TheLongestSequence) {
  const std::string setup = model_ + " --gpus 4 --zero 3 --gpu 24GiB";
  const json::object fit = ask("fit " + setup + " --ask seq");
  const std::uint64_t longest = number(fit.at("plans").at(0).at("setup").at("sequence"));
  const auto status = [&](std::uint64_t tokens) {
    return memcalc("plan " + setup + " --seq " + std::to_string(tokens)).status;
  };
  EXPECT_EQ(longest % 128, 0U);
  EXPECT_EQ(status(longest), 0);
  EXPECT_EQ(status(longest + 128), 1);
}

TEST_F(FitTest, TheLargestModelHasMoreBlocksThanASmallerGpuAllows) {
  const auto blocks = [&](const char* gpu) {
    const json::object fit = ask("fit " + model_ + " --gpus 4 --zero 3 --seq 1024 --gpu " + gpu + " --ask model");
    return std::stoull(std::string(fit.at("answer").as_string()));
  };
  const std::uint64_t small = blocks("16GiB");
  EXPECT_GT(small, 1U);
  EXPECT_GT(blocks("24GiB"), small);
}

// Where no single change is enough, two are tried; never two that share out the same ranks.
TEST_F(FitTest, PairsOfChanges) {
  const json::object fit = ask("fit " + model_ + " --gpus 8 --gpu 6GiB --seq 2048 --zero 1 --ask cheapest");
  ASSERT_FALSE(fit.at("plans").as_array().empty());
  for (const json::value& plan : fit.at("plans").as_array()) {
    EXPECT_EQ(number(plan.at("setup").at("world_size")), 8U);
    const std::string change(plan.at("change").as_string());
    EXPECT_EQ(change.find("--grad-accum"), change.rfind("--grad-accum")) << change;
    const std::string words = "plan " + model_ + " --gpus 8 --gpu 6GiB --seq 2048 " +
                              (change.find("--zero") == std::string::npos ? "--zero 1 " : "") + change;
    EXPECT_EQ(memcalc(words).status, 0) << words;
  }
}

// A gather that nothing hides costs time.
TEST_F(FitTest, WhatHidesNothingIsSlower) {
  const std::string setup =
      "fit llama-3.1-8b --gpus 64 --zero 3 --gpu h100-80gb --seq 4096 --tp 1 --pp 1 --micro-batch 1 "
      "--recompute full --global-batch 64 --plans 1";
  const auto seconds = [&](const std::string& words) {
    return ask(setup + words).at("plans").at(0).at("step_seconds").as_double();
  };
  EXPECT_GT(seconds(" --prefetch 0"), seconds(""));
}

TEST_F(FitTest, WhatIsNotKnownDoesNotFit) {
  const json::object fit = ask("fit " + model_ + " --gpus 2 --tp 2 --gpu 80GiB --seq 1024 --ask micro-batch", 1);
  EXPECT_TRUE(fit.at("answer").is_null());
  EXPECT_NE(fit.at("rejected").at(0).at("why").as_string().find("not counted"), json::string::npos);
}

TEST_F(FitTest, HugeNumbersAreRefused) {
  EXPECT_EQ(memcalc("fit " + model_ + " --gpus 1048576 --micro-batch 17592186044416 --seq 1 --gpu 80GiB").status, 3);
  EXPECT_EQ(memcalc("plan " + model_ + " --seq 4096 --micro-batch 8589934592").status, 3);
  EXPECT_EQ(memcalc("fit " + model_ + " --gpu 2GiB --seq 1024 --ask gpus").status, 1);
}

TEST_F(FitTest, WhereNothingFitsItSaysSo) {
  const json::object fit = ask("fit " + model_ + " --gpu 300MiB --seq 1024", 1);
  EXPECT_TRUE(fit.at("answer").is_null());
  EXPECT_TRUE(fit.at("plans").as_array().empty());
  EXPECT_FALSE(fit.at("rejected").as_array().empty());
  EXPECT_EQ(memcalc("fit " + model_ + " --seq 1024").status, 2);
  EXPECT_EQ(memcalc("fit " + model_ + " --gpu 80GiB").status, 2);
  EXPECT_EQ(memcalc("fit " + model_ + " --gpu 80GiB --seq 1024 --ask nothing").status, 2);
}

}  // namespace
}  // namespace shardplan::test
