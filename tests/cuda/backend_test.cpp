// Loading the module, and what is said where something is missing: with or without a GPU.
#include "shard/cuda_backend.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "planner/formats/gpu_table.h"
#include "tools/memcalc/detected.h"

namespace shardplan::test {
namespace {

std::string problem_of_loading(const std::string& path) {
  try {
    load_cuda_backend(path);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(CudaBackend, SaysWhichModuleIsNotThere) {
  const std::string problem = problem_of_loading("/nowhere/libshardplan-cuda.so");
  EXPECT_TRUE(contains(problem, "CUDA: ") && contains(problem, "/nowhere/libshardplan-cuda.so")) << problem;
}

TEST(CudaBackend, RefusesALibraryThatIsNoModule) {
  EXPECT_TRUE(contains(problem_of_loading("libm.so.6"), "is not a module of shardplan"));
}

struct Known {
  const char* driver_name;
  std::uint64_t mebibytes;
  const char* row;
};

// Names as nvidia-smi and cudaGetDeviceProperties print them.
TEST(DetectedGpus, AreFoundInTheTable) {
  const std::vector<Gpu> table = gpu_table();
  for (const Known& known :
       {Known{"NVIDIA H100 80GB HBM3", 81079, "h100-80gb"}, Known{"NVIDIA H100 PCIe", 81079, "h100-80gb-pcie"},
        Known{"NVIDIA H200", 143156, "h200-141gb"}, Known{"NVIDIA A100-SXM4-40GB", 40370, "a100-40gb"},
        Known{"NVIDIA A100-SXM4-80GB", 81152, "a100-80gb"}, Known{"NVIDIA A100-PCIE-40GB", 40370, "a100-40gb-pcie"},
        Known{"Tesla V100-SXM2-16GB", 16151, "v100-16gb"}, Known{"Tesla T4", 15102, "t4"},
        Known{"NVIDIA L40S", 45596, "l40s"}, Known{"NVIDIA GeForce RTX 4090", 24195, "rtx-4090"},
        Known{"NVIDIA RTX 6000 Ada Generation", 48638, "rtx-6000-ada"}, Known{"NVIDIA B200", 182642, "b200-180gb"}}) {
    const Gpu* row = memcalc::row_of(table, known.driver_name, Bytes{known.mebibytes << 20});
    EXPECT_EQ(row == nullptr ? "none" : row->name, known.row) << known.driver_name;
  }
  EXPECT_EQ(memcalc::row_of(table, "NVIDIA H100 80GB HBM3", 40_GiB), nullptr) << "a part of a divided GPU";
  EXPECT_EQ(memcalc::row_of(table, "NVIDIA Quadro Z9", 80_GiB), nullptr);
}

}  // namespace
}  // namespace shardplan::test
