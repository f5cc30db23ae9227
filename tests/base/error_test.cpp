#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <type_traits>

namespace shardplan {
namespace {

void expect_says(const std::exception& error, std::initializer_list<const char*> words) {
  for (const char* word : words) EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
}

template <typename... Errors>
constexpr bool kAllRecoverable = (std::is_base_of_v<Error, Errors> && ...);
static_assert(
    kAllRecoverable<ArithmeticOverflow, ConfigError, OutOfMemory, CommunicationError, IoError, CheckpointError>);
static_assert(!std::is_base_of_v<Error, CheckFailure> && std::is_base_of_v<std::logic_error, CheckFailure>);

TEST(Errors, ConfigErrorIsSourceKeyProblem) {
  const ConfigError whole("config.json", "rope_scaling.factor", "expected a number");
  EXPECT_STREQ(whole.what(), "config.json: rope_scaling.factor: expected a number");
  EXPECT_EQ(whole.source(), "config.json");
  EXPECT_EQ(whole.key(), "rope_scaling.factor");
  EXPECT_EQ(whole.problem(), "expected a number");
  EXPECT_STREQ(ConfigError("config.json", "", "is empty").what(), "config.json: is empty");
  EXPECT_STREQ(ConfigError("", "--zero", "expected 0 to 3").what(), "--zero: expected 0 to 3");
  EXPECT_STREQ(ConfigError("", "", "no model").what(), "no model");
}

TEST(Errors, OutOfMemoryCarriesTheNumbers) {
  const OutOfMemory error("device", 80_GiB, 1_GiB);
  EXPECT_EQ(error.tier(), "device");
  EXPECT_EQ(error.requested(), 80_GiB);
  EXPECT_EQ(error.available(), 1_GiB);
  expect_says(error, {"device", "80.00 GiB", "1.00 GiB"});
}

TEST(Errors, CommunicationErrorNamesRankOperationAndDeadline) {
  const CommunicationError error(3, "all_gather", std::chrono::milliseconds(1500), "no answer");
  EXPECT_EQ(error.rank(), 3);
  EXPECT_EQ(error.operation(), "all_gather");
  EXPECT_EQ(error.deadline(), std::chrono::milliseconds(1500));
  expect_says(error, {"rank 3", "all_gather", "no answer", "1500"});
  const CommunicationError unknown(-1, "agree", std::chrono::milliseconds(10), "poisoned");
  EXPECT_EQ(unknown.rank(), -1);
  EXPECT_EQ(std::string(unknown.what()).find("-1"), std::string::npos) << unknown.what();
  expect_says(unknown, {"agree", "poisoned"});
}

TEST(Errors, IoErrorCarriesPathOffsetAndErrno) {
  const IoError error("/data/shard", 4096, ENOSPC, "cannot write");
  EXPECT_EQ(error.path(), "/data/shard");
  EXPECT_EQ(error.offset(), 4096U);
  EXPECT_EQ(error.error_number(), ENOSPC);
  expect_says(error, {"/data/shard", "4096", "cannot write", std::strerror(ENOSPC)});
  const IoError ended("f", 7, 0, "the file ends early");
  expect_says(ended, {"f", "7", "the file ends early"});
  EXPECT_EQ(std::string(ended.what()).find("Success"), std::string::npos) << ended.what();
  EXPECT_EQ(std::string(IoError("f", 0, ENOENT, "cannot be opened").what()),
            std::string("f: cannot be opened: ") + std::strerror(ENOENT));
}

TEST(Errors, CheckpointErrorNamesThePath) {
  const CheckpointError error("run/step-10", "no manifest");
  EXPECT_EQ(error.path(), "run/step-10");
  expect_says(error, {"run/step-10", "no manifest"});
}

TEST(Check, ThrowsWithPlaceConditionAndMessage) {
  const int two = 2;
  try {
    SHARDPLAN_CHECK(two + 2 == 5, "arithmetic holds");
    FAIL();
  } catch (const CheckFailure& failure) {
    expect_says(failure, {"tests/base/error_test.cpp", "two + 2 == 5", "arithmetic holds"});
    EXPECT_EQ(failure.what()[0], 't') << "no path of a machine in front: " << failure.what();
  }
}

TEST(Check, BuildsItsMessageOnlyWhenItFails) {
  int built = 0;
  int evaluated = 0;
  const auto message = [&] { return "message " + std::to_string(++built); };
  SHARDPLAN_CHECK(++evaluated == 1, message());
  EXPECT_EQ(built, 0);
  EXPECT_EQ(evaluated, 1);
  EXPECT_THROW(SHARDPLAN_CHECK(++evaluated == 1, message()), CheckFailure);
  EXPECT_EQ(built, 1);
  EXPECT_EQ(evaluated, 2);
}

}  // namespace
}  // namespace shardplan
