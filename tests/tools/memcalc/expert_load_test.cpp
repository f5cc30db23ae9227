// Plans of mixtures of experts that are not chosen equally often.
#include <gtest/gtest.h>

#include "tests/tools/memcalc/program.h"

namespace shardplan::test {
namespace {

namespace json = boost::json;

const std::string kParallel = "mixtral-8x7b --gpus 64 --ep 8 --tp 2 --sequence-parallel --engine megatron --seq 4096";

std::uint64_t peak(const std::string& flags) {
  return number(plan(flags).at("worst").at("device").at("peak_allocated"));
}

TEST(MemcalcExpertLoad, MoreOnTheBusiestRank) {
  const std::uint64_t even = peak(kParallel);
  const std::uint64_t half_more = peak(kParallel + " --moe-imbalance 1.5");
  const std::uint64_t worst = peak(kParallel + " --moe-imbalance worst");
  EXPECT_LT(even, half_more);
  EXPECT_LT(half_more, worst);
  EXPECT_EQ(peak(kParallel + " --moe-imbalance 1"), even);
  // One expert here, which is one of every token's two: four even shares.
  EXPECT_EQ(peak(kParallel + " --moe-imbalance 4"), worst);
  EXPECT_EQ(peak(kParallel + " --moe-imbalance 100"), worst);
  EXPECT_EQ(peak(kParallel + " --moe-imbalance worst --moe-capacity-factor 1.5"),
            peak(kParallel + " --moe-imbalance 1.5 --moe-capacity-factor 1e20"));
}

TEST(MemcalcExpertLoad, TheSetUpSaysIt) {
  const json::object even = plan(kParallel).at("setup").as_object();
  EXPECT_EQ(even.at("moe_imbalance").to_number<double>(), 1);
  EXPECT_TRUE(even.at("moe_capacity_factor").is_null());
  const json::object worst =
      plan(kParallel + " --moe-imbalance worst --moe-capacity-factor 1.25").at("setup").as_object();
  EXPECT_EQ(worst.at("moe_imbalance"), json::value("worst"));
  EXPECT_EQ(worst.at("moe_capacity_factor").to_number<double>(), 1.25);
  EXPECT_TRUE(has(memcalc("plan " + kParallel).out, "experts are taken to be chosen equally often"));
  EXPECT_TRUE(has(memcalc("plan " + kParallel + " --moe-imbalance 2.5").out, "experts: at most 2.5 even shares"));
}

TEST(MemcalcExpertLoad, AStepWaitsForTheBusiestRank) {
  const auto seconds = [](const std::string& flags) {
    const Outcome outcome =
        memcalc("plan " + kParallel + " --micro-batch 8 --gpu h100-80gb --against '" + flags + "' --json");
    return json::parse(outcome.out).at("against").at("step_seconds");
  };
  EXPECT_GT(seconds("--moe-imbalance 2").at("difference").to_number<double>(), 0);
  EXPECT_EQ(seconds("--moe-imbalance 1").at("difference").to_number<double>(), 0);
}

TEST(MemcalcExpertLoad, OneClearError) {
  for (const char* wrong : {"0.5", "-1", "many", "inf", "nan", "2x", ""}) {
    const Outcome outcome = memcalc("plan " + kParallel + " --moe-imbalance '" + wrong + "'");
    EXPECT_EQ(outcome.status, 2) << wrong;
    EXPECT_TRUE(has(outcome.error, "--moe-imbalance")) << outcome.error;
  }
  const Outcome none = memcalc("plan " + kParallel + " --moe-capacity-factor 0");
  EXPECT_EQ(none.status, 2);
  EXPECT_TRUE(has(none.error, "--moe-capacity-factor: expected a number above 0, found '0'")) << none.error;
  const std::string hf = memcalc("plan mixtral-8x7b --gpus 8 --seq 64 --moe-capacity-factor 1").out;
  EXPECT_TRUE(has(hf, "profile hf-sdpa drops no tokens (--moe-capacity-factor)")) << hf;
  const std::string dense = memcalc("plan llama-2-7b --gpus 8 --seq 64 --moe-imbalance 2").out;
  EXPECT_TRUE(has(dense, "note: --moe-imbalance and --moe-capacity-factor are not used: llama has no experts"))
      << dense;
}

TEST(MemcalcExpertLoad, ExportedArgumentsSayTheCapacity) {
  const std::string text = memcalc("plan " + kParallel + " --moe-capacity-factor 1.25 --export megatron").out;
  EXPECT_TRUE(has(text, "--moe-expert-capacity-factor: \"1.25\"")) << text;
}

}  // namespace
}  // namespace shardplan::test
