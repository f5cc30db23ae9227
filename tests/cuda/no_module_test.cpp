// A build without the module.
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "shard/cuda_backend.h"

namespace shardplan::test {
namespace {

TEST(CudaModule, IsMissedByNameAndPlace) {
  try {
    load_cuda_backend();
    FAIL() << "there is a module";
  } catch (const ConfigError& error) {
    const std::string problem = error.what();
    EXPECT_NE(problem.find("libshardplan-cuda.so (looked in /"), std::string::npos) << problem;
  }
}

}  // namespace
}  // namespace shardplan::test
