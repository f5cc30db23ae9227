// SimuMax's published runs (its docs/b200), as Megatron-LM's arguments.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>

namespace shardplan {

// Megatron-LM 23e00ed with Transformer Engine 2.11: Llama 3 at full width with few layers.
struct SimuMaxRun {
  bool large = false;  // 405B instead of 70B
  std::uint64_t layers = 12;
  std::uint64_t tensor = 1;
  std::uint64_t pipeline = 1;
  std::uint64_t context = 1;
  std::uint64_t sequence = 4096;
  std::uint64_t micro_batch = 1;
  std::uint64_t micro_batches = 4;
  std::uint64_t world_size = 8;

  std::uint64_t data() const { return world_size / (tensor * pipeline * context); }
};

// Flags by its launch scripts; the vocabulary is the tokenizer's 128256 and one for the end of documents.
boost::json::object simumax_arguments(const SimuMaxRun& run);
// What PyTorch 2.9 took on Blackwell by itself (ATen/cuda/CublasHandlePool.cpp).
boost::json::object simumax_environment();

}  // namespace shardplan
