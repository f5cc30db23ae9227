// What libraries take beside tensors: per generation, by configuration, and for every GPU of the table.
#include "planner/engines/workspaces.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "planner/formats/gpu_table.h"

namespace shardplan {
namespace {

Bytes bytes_of(const Workspaces& workspaces, std::string_view name) {
  Bytes sum;
  for (const Workspace& workspace : workspaces.list) {
    if (workspace.name == name) sum += workspace.total();
  }
  return sum;
}

TEST(Workspaces, EveryNvidiaGpuOfTheTableHasAGeneration) {
  for (const Gpu& gpu : gpu_table()) {
    EXPECT_EQ(generation_of_gpu(gpu.name).has_value(), gpu.vendor == "NVIDIA") << gpu.name;
  }
  EXPECT_EQ(generation_of_gpu("a100-80gb"), GpuGeneration::ampere);
  EXPECT_EQ(generation_of_gpu("a10g"), GpuGeneration::ampere);
  EXPECT_EQ(generation_of_gpu("H100 (DGX H100)"), GpuGeneration::hopper);
  EXPECT_EQ(generation_of_gpu("GB200"), GpuGeneration::blackwell);
  EXPECT_EQ(generation_of_gpu("gh200-96gb"), GpuGeneration::hopper);
  EXPECT_EQ(generation_of_gpu("l40s"), GpuGeneration::ada);
  EXPECT_EQ(generation_of_gpu("rtx-6000-ada"), GpuGeneration::ada);
  EXPECT_EQ(generation_of_gpu("rtx-a6000"), GpuGeneration::ampere);
  EXPECT_EQ(generation_of_gpu("mi300x-192gb"), std::nullopt);
}

TEST(Workspaces, TorchReadsItsConfiguration) {
  EXPECT_EQ(cublas_workspace(GpuGeneration::ampere, ""), 8_MiB + 128_KiB);
  EXPECT_EQ(cublas_workspace(GpuGeneration::hopper, ""), 32_MiB);
  EXPECT_EQ(cublas_workspace(GpuGeneration::ampere, ":4096:8"), 32_MiB);
  EXPECT_EQ(cublas_workspace(GpuGeneration::hopper, ":16:8"), 128_KiB);
  EXPECT_EQ(cublas_workspace(GpuGeneration::hopper, ":4096:2:16:8"), 8_MiB + 128_KiB);
  for (const char* bad : {"4096:8", ":4096", ":4096:", ":x:8", ":4096:8:"}) {
    EXPECT_THROW(cublas_workspace(GpuGeneration::hopper, bad), ConfigError) << bad;
  }
}

// Megatron's reproducible runs: 96 MiB and 1 KiB on Hopper, 68 MiB on Ampere.
TEST(Workspaces, ATransformerEngineRun) {
  LibraryUse use;
  use.cublas_workspace_config = ":4096:8";
  use.transformer_engine = true;
  EXPECT_EQ(workspaces_of(GpuGeneration::hopper, use).allocated(), 96_MiB + 1_KiB);
  EXPECT_EQ(workspaces_of(GpuGeneration::ampere, use).allocated(), 68_MiB);
  use.transformer_engine_overlap = true;
  EXPECT_EQ(workspaces_of(GpuGeneration::hopper, use).allocated(), 192_MiB + 4_KiB);
  use.transformer_engine_grouped = true;
  EXPECT_EQ(workspaces_of(GpuGeneration::hopper, use).allocated(), 320_MiB + 8_KiB);
}

// NVIDIA/nccl issue 1685 counts allocations of 10,485,760 and 2,097,152 bytes, 32 channels to each of 7 peers.
TEST(Workspaces, NcclsBuffers) {
  EXPECT_EQ(nccl_communicator(1).count(), 10'485'760U + 2'097'152U);
  EXPECT_EQ(nccl_communicator(24), 288_MiB);
  EXPECT_EQ(nccl_communicator(kNvlinkChannels, 2), 576_MiB);
  EXPECT_EQ(nccl_communicator(32, 7).count(), 32 * 7 * 12'582'912ULL);
  LibraryUse use;
  use.communicators = 3;
  use.channels = 24;
  const Workspaces held = workspaces_of(GpuGeneration::hopper, use);
  EXPECT_EQ(bytes_of(held, "NCCL: buffers of rings"), 864_MiB);
  EXPECT_EQ(held.outside(), 864_MiB + 520_MiB);
  EXPECT_EQ(held.allocated(), 64_MiB);
}

TEST(Workspaces, ContextsThatNobodyMeasuredAreNothing) {
  EXPECT_EQ(cuda_context(GpuGeneration::volta), std::nullopt);
  EXPECT_LT(*cuda_context(GpuGeneration::ampere), *cuda_context(GpuGeneration::hopper));
  EXPECT_LT(*cuda_context(GpuGeneration::hopper), *cuda_context(GpuGeneration::blackwell));
}

}  // namespace
}  // namespace shardplan
