// The module that this build has made, on a machine with or without a GPU.
#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "shard/cuda_backend.h"

namespace shardplan::test {
namespace {

TEST(CudaModule, LoadsWithoutADriverAndSaysSo) {
  const CudaBackend& cuda = load_cuda_backend(SHARDPLAN_CUDA_MODULE);
  EXPECT_TRUE(cuda.kernels().hold_values());
  try {
    EXPECT_FALSE(cuda.gpus().empty());
  } catch (const ConfigError& error) {
    const std::string problem = error.what();
    EXPECT_NE(problem.find("driver"), std::string::npos) << problem;
    EXPECT_THROW(cuda.make_device(0), ConfigError);
    EXPECT_THROW(cuda.make_communicator(0, {}), ConfigError);
  }
}

TEST(CudaModule, IsFoundInTheLibrariesBesideTheProgram) {
  EXPECT_EQ(&load_cuda_backend(), &load_cuda_backend(SHARDPLAN_CUDA_MODULE));
}

}  // namespace
}  // namespace shardplan::test
