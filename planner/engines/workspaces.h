// What libraries take of a GPU beside the tensors of a program: workspaces of matrix products, buffers of communicators,
// the driver's context. None depends on the model; most depend on the GPU's generation.
//
// Two kinds. Those inside torch's caching allocator are in torch.cuda.memory_allocated (allocated_after_step and
// peak_allocated); those outside of it only nvidia-smi shows (total). Each has the place in the library's source, or the
// report, that it is from; what has neither is nothing, never a guess.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/dtype.h"
#include "planner/catalog.h"

namespace shardplan {

// In the order of compute capability: 6, 7.0, 7.5, 8.0 and 8.6, 8.9, 9, 10 and 12.
enum class GpuGeneration : std::uint8_t { pascal, volta, turing, ampere, ada, hopper, blackwell };
std::string_view name(GpuGeneration generation);

// Of an NVIDIA GPU in planner/data/gpus.json, or called like one ("h100-80gb", "GB200"); nothing for other names.
std::optional<GpuGeneration> generation_of_gpu(std::string_view gpu);

// What of a run decides them.
struct LibraryUse {
  // CUBLAS_WORKSPACE_CONFIG as it is set (":4096:8"): what reproducible products ask for. Empty: torch's default.
  std::string cublas_workspace_config;
  // Pairs of host thread and stream that call torch's matrix products, each with a workspace of its own. Two where a
  // backward runs: autograd has a thread for each device. 0: no product goes through torch.
  std::uint64_t cublas_callers = 2;

  bool transformer_engine = false;
  // Megatron's --tp-comm-overlap: products that overlap with communication have a workspace of three streams.
  bool transformer_engine_overlap = false;
  // Megatron's --moe-grouped-gemm: products of experts run on four streams.
  bool transformer_engine_grouped = false;

  // Communicators that have been used for collectives (torch makes each with its first one), and their channels: as many
  // as NCCL prints ("24 coll channels"). 0: not counted.
  std::uint64_t communicators = 0;
  std::uint64_t channels = 0;
};

struct Workspace {
  std::string name;
  Bytes bytes;  // each
  std::uint64_t count = 1;
  bool in_allocator = true;  // counted by torch.cuda.memory_allocated
  std::string source;

  Bytes total() const { return count * bytes; }
  bool operator==(const Workspace&) const = default;
};

struct Workspaces {
  std::vector<Workspace> list;  // none of 0 bytes

  Bytes allocated() const;  // in torch's allocator
  Bytes outside() const;
};

// Throws ConfigError for a CUBLAS_WORKSPACE_CONFIG that cuBLAS does not know.
Workspaces workspaces_of(GpuGeneration generation, const LibraryUse& use);

// torch's workspace of one caller. ATen/cuda/CublasHandlePool.cpp: the sum of SIZE x COUNT KiB of ":SIZE:COUNT..." or, by
// default, 32 MiB on Hopper and Blackwell, else :4096:2:16:8 = 8.125 MiB, which older versions of torch use on Blackwell too.
// Products of cuBLASLt share it (TORCH_CUBLASLT_UNIFIED_WORKSPACE, on by default).
Bytes cublas_workspace(GpuGeneration generation, std::string_view config);

// Transformer Engine's, of one stream. pytorch/cpp_extensions/gemm.py, get_cublas_workspace_size_bytes: 32 MiB and 1 KiB from
// Hopper on (without the 1 KiB before 2.8), else 4 MiB.
Bytes transformer_engine_workspace(GpuGeneration generation);

// Transformer Engine's placeholders for weight gradients that Megatron's --gradient-accumulation-fusion has added up already:
// one for each distinct shape of a matrix, shared by all that have it. pytorch/module/base.py, get_dummy_wgrad; Megatron's
// core/tensor_parallel/layers.py takes them from there for embeddings and heads too.
Bytes dummy_weight_gradients(const Catalog& held, DType parameter);

// NCCL, of one communicator whose ranks are reached over NVLink or PCIe: for each channel the buffers of one neighbour,
// 10 MiB to receive and 2 MiB to send (transport/p2p.cc, p2pRecvSetup: 4 MiB simple + 120 x 640 x 8 x 8 B LL128 + 512 KiB LL, in
// pages of 2 MiB). A ring has one neighbour each way; trees, once used, go both ways: twice as much. All-to-all connects
// every pair: so much for each peer.
Bytes nccl_communicator(std::uint64_t channels, std::uint64_t neighbours = 1);

// Channels of a communicator inside an NVSwitch node of A100 or H100, as NCCL 2.18 and later print them; H800 with less NVLink
// 16. Ring and trees then are 576 MiB, within the 544 to 688 MB that users report.
constexpr std::uint64_t kNvlinkChannels = 24;

// The driver's context of a process before any kernel is loaded; kernels come when they are first used (CUDA 11.7 and
// later) and add to it. Measured, CUDA 12.9 and 13: A800 414 MiB, H200 520 MiB, B200 616 MiB.
std::optional<Bytes> cuda_context(GpuGeneration generation);

}  // namespace shardplan
