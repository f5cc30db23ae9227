#include "planner/engines/workspaces.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>
#include <utility>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {
namespace {

constexpr const char* kTorch = "ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize and setWorkspaceForHandle";
constexpr const char* kTransformerEngine = "transformer_engine/pytorch/cpp_extensions/gemm.py, get_cublas_workspace";
constexpr const char* kNccl = "nccl 2.30 src/transport/p2p.cc, p2pRecvSetup and p2pSendSetup; NVIDIA/nccl issue 1685";

// How names of GPUs begin, the longer ones first: "a100" before "a10".
struct Stem {
  std::string_view stem;
  GpuGeneration generation;
};
constexpr std::array kStems{
    Stem{"p100", GpuGeneration::pascal},      Stem{"v100", GpuGeneration::volta},
    Stem{"t4", GpuGeneration::turing},        Stem{"rtx-20", GpuGeneration::turing},
    Stem{"a100", GpuGeneration::ampere},      Stem{"a800", GpuGeneration::ampere},
    Stem{"a10", GpuGeneration::ampere},       Stem{"a16", GpuGeneration::ampere},
    Stem{"a30", GpuGeneration::ampere},       Stem{"a40", GpuGeneration::ampere},
    Stem{"rtx-30", GpuGeneration::ampere},    Stem{"rtx-a", GpuGeneration::ampere},
    Stem{"l4", GpuGeneration::ada},           Stem{"rtx-40", GpuGeneration::ada},
    Stem{"rtx-6000-ada", GpuGeneration::ada}, Stem{"h100", GpuGeneration::hopper},
    Stem{"h800", GpuGeneration::hopper},      Stem{"h20", GpuGeneration::hopper},
    Stem{"gh200", GpuGeneration::hopper},     Stem{"b100", GpuGeneration::blackwell},
    Stem{"b200", GpuGeneration::blackwell},   Stem{"b300", GpuGeneration::blackwell},
    Stem{"gb200", GpuGeneration::blackwell},  Stem{"gb300", GpuGeneration::blackwell},
    Stem{"rtx-50", GpuGeneration::blackwell}, Stem{"rtx-pro-6000", GpuGeneration::blackwell},
};

bool hopper_or_newer(GpuGeneration generation) {
  return generation >= GpuGeneration::hopper;
}

[[noreturn]] void bad_config(std::string_view config) {
  throw ConfigError("CUBLAS_WORKSPACE_CONFIG", "", fmt::format("'{}': expected :SIZE:COUNT, as in :4096:8", config));
}

// Takes ":NUMBER" off the front.
std::uint64_t take_number(std::string_view& text, std::string_view whole) {
  std::uint64_t number = 0;
  if (text.empty() || text.front() != ':') bad_config(whole);
  const auto [end, error] = std::from_chars(text.data() + 1, text.data() + text.size(), number);
  if (error != std::errc{}) bad_config(whole);
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

}  // namespace

std::string_view name(GpuGeneration generation) {
  constexpr std::array<std::string_view, 7> kNames{"Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell"};
  return kNames[static_cast<std::size_t>(generation)];
}

std::optional<GpuGeneration> generation_of_gpu(std::string_view gpu) {
  std::string lower(gpu);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  for (const Stem& stem : kStems) {
    if (lower.starts_with(stem.stem)) return stem.generation;
  }
  return std::nullopt;
}

Bytes Workspaces::allocated() const {
  Bytes sum;
  for (const Workspace& workspace : list) sum += workspace.in_allocator ? workspace.total() : Bytes{};
  return sum;
}

Bytes Workspaces::outside() const {
  Bytes sum;
  for (const Workspace& workspace : list) sum += workspace.in_allocator ? Bytes{} : workspace.total();
  return sum;
}

Bytes cublas_workspace(GpuGeneration generation, std::string_view config) {
  if (config.empty()) return hopper_or_newer(generation) ? 32_MiB : 2 * 4_MiB + 8 * 16_KiB;
  Bytes sum;
  for (std::string_view rest = config; !rest.empty();) {
    const std::uint64_t kibibytes = take_number(rest, config);
    const std::uint64_t count = take_number(rest, config);
    sum += checked_multiply(kibibytes, count) * 1_KiB;
  }
  return sum;
}

Bytes transformer_engine_workspace(GpuGeneration generation) {
  return hopper_or_newer(generation) ? 32_MiB + 1_KiB : 4_MiB;
}

Bytes dummy_weight_gradients(const Catalog& held, DType parameter) {
  std::set<std::pair<std::uint64_t, std::uint64_t>> shapes;
  Bytes bytes;
  for (const UnitRun& run : held.runs) {
    for (const Tensor& tensor : run.tensors) {
      if (tensor.shape.size() != 2 || !tensor.trainable || !tensor.tied_to.empty()) continue;
      if (shapes.emplace(tensor.shape[0], tensor.shape[1]).second)
        bytes += bytes_for(parameter, elements(tensor.shape));
    }
  }
  return bytes;
}

Bytes nccl_communicator(std::uint64_t channels, std::uint64_t neighbours) {
  constexpr std::uint64_t kSteps = 8;
  constexpr Bytes kPage = 2_MiB;
  // init.cc, DEFAULT_BUFFSIZE, DEFAULT_LL128_BUFFSIZE and DEFAULT_LL_BUFFSIZE; device.h. A page more than the buffers
  // need for the flags in front of them would be one too many: they fit.
  constexpr std::uint64_t kLl128 = std::uint64_t{120} * 640 * kSteps * 8;
  constexpr std::uint64_t kLl = std::uint64_t{8} * 512 * kSteps * 16;
  constexpr std::uint64_t kSimple = std::uint64_t{1} << 22;
  const Bytes receive{round_up(kSimple + kLl128 + kLl, kPage.count())};
  return checked_multiply(channels, neighbours) * (receive + kPage);
}

std::optional<Bytes> cuda_context(GpuGeneration generation) {
  switch (generation) {
    case GpuGeneration::ampere:
      return 414_MiB;  // A800, CUDA 12.9: kvcache-ai/Mooncake pull request 3973
    case GpuGeneration::hopper:
      return 520_MiB;  // H200, CUDA 12.9: the same
    case GpuGeneration::blackwell:
      return 616_MiB;  // B200, CUDA 13: kvcache-ai/Mooncake issue 3434
    case GpuGeneration::pascal:
    case GpuGeneration::volta:
    case GpuGeneration::turing:
    case GpuGeneration::ada:
      break;
  }
  return std::nullopt;
}

Workspaces workspaces_of(GpuGeneration generation, const LibraryUse& use) {
  Workspaces result;
  const auto add = [&](std::string what, Bytes bytes, std::uint64_t count, bool in_allocator, const char* source) {
    if (count == 0 || bytes == Bytes{}) return;
    result.list.push_back({std::move(what), bytes, count, in_allocator, source});
  };
  add("torch: cuBLAS workspaces", cublas_workspace(generation, use.cublas_workspace_config), use.cublas_callers, true,
      kTorch);
  if (use.transformer_engine) {
    const Bytes one = transformer_engine_workspace(generation);
    constexpr std::uint64_t kOverlapStreams = 3;  // _NUM_MAX_UB_STREAMS
    constexpr std::uint64_t kComputeStreams = 4;  // common/util/multi_stream.cpp, NVTE_NUM_COMPUTE_STREAMS
    add("transformer_engine: cuBLAS workspace", one, 1, true, kTransformerEngine);
    if (use.transformer_engine_overlap) {
      add("transformer_engine: cuBLAS workspace of products that overlap", kOverlapStreams * one, 1, true,
          kTransformerEngine);
    }
    if (use.transformer_engine_grouped) {
      add("transformer_engine: cuBLAS workspaces of grouped products", one, kComputeStreams, true, kTransformerEngine);
    }
  }
  add("NCCL: buffers of rings", nccl_communicator(use.channels), use.communicators, false, kNccl);
  if (const std::optional<Bytes> context = cuda_context(generation)) {
    add("CUDA context", *context, 1, false, "kvcache-ai/Mooncake pull request 3973 and issue 3434: nvidia-smi");
  }
  return result;
}

}  // namespace shardplan
