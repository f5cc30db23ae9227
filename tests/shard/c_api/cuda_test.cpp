// GPUs over the C interface, as far as a machine without one can tell: what is missing is said, and nothing falls back.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/shard/c_api/run.h"

namespace shardplan::test {
namespace {

bool has_gpu() {
  return std::filesystem::exists("/dev/nvidiactl");
}

// The module, or what the module misses.
testing::AssertionResult says_what_is_missing(const shardplan_error& error) {
  const std::string message = error.message;
  if (error.status != SHARDPLAN_CONFIG_ERROR || !message.starts_with("CUDA: ")) {
    return testing::AssertionFailure() << shardplan_status_name(error.status) << ": " << message;
  }
  for (const char* reason : {"this installation has no libshardplan-cuda.so (looked in /", "driver"}) {
    if (message.find(reason) != std::string::npos) return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "'" << message << "' gives no reason";
}

TEST(CApiCuda, ACommunicatorSaysWhatIsMissing) {
  if (has_gpu()) GTEST_SKIP() << "there is a GPU";
  shardplan_error error{};
  shardplan_communicator* communicator = nullptr;
  EXPECT_NE(shardplan_communicator_create_nccl(0, 1, 0, 1000, nullptr, nullptr, &communicator, &error), SHARDPLAN_OK);
  EXPECT_TRUE(says_what_is_missing(error));
  EXPECT_EQ(communicator, nullptr);
}

TEST(CApiCuda, AnOptimizerSaysWhatIsMissing) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, "{}");
  const std::vector<CommunicatorHandle> world = local_ranks(1);
  shardplan_error error{};
  shardplan_optimizer* optimizer = nullptr;
  EXPECT_NE(shardplan_optimizer_create(plan.get(), "cuda", world[0].get(), initial_values, nullptr, &optimizer, &error),
            SHARDPLAN_OK);
  EXPECT_EQ(optimizer, nullptr);
  if (has_gpu()) {
    EXPECT_NE(std::string(error.message).find("shardplan_communicator_create_nccl"), std::string::npos)
        << error.message;
  } else {
    EXPECT_TRUE(says_what_is_missing(error));
  }
}

TEST(CApiCuda, ArgumentsAreCheckedBeforeTheModule) {
  shardplan_error error{};
  shardplan_communicator* communicator = nullptr;
  EXPECT_EQ(shardplan_communicator_create_nccl(2, 2, 0, 1000, nullptr, nullptr, &communicator, &error),
            SHARDPLAN_CONFIG_ERROR);
  EXPECT_STREQ(error.message, "rank: 2: expected 0 to 1");
  EXPECT_EQ(shardplan_communicator_create_nccl(0, 1, -1, 1000, nullptr, nullptr, &communicator, &error),
            SHARDPLAN_CONFIG_ERROR);
  EXPECT_STREQ(error.message, "gpu: -1: expected 0 or more");
  EXPECT_EQ(shardplan_communicator_create_nccl(0, 2, 0, 1000, nullptr, nullptr, &communicator, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_communicator_create_nccl(0, 1, 0, 1000, nullptr, nullptr, nullptr, &error), SHARDPLAN_BUG);
}

}  // namespace
}  // namespace shardplan::test
