// An accelerator, as a data sheet and its driver describe it. What is not known is nothing, never a guess.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace shardplan {

struct Gpu {
  std::string name;                  // "h100-80gb"
  std::vector<std::string> aliases;  // "h100"
  std::string vendor;
  Bytes memory;  // as sold
  // What the driver shows (nvidia-smi, amd-smi): some is the hardware's own, and ECC may take a part.
  std::optional<Bytes> visible_memory;
  std::optional<std::uint64_t> bandwidth_bytes_per_second;
  // Dense matrix products; fp32 is plain fp32, not TF32.
  std::optional<std::uint64_t> bf16_flops;
  std::optional<std::uint64_t> fp16_flops;
  std::optional<std::uint64_t> fp32_flops;
  std::optional<std::uint64_t> link_bytes_per_second;  // to its peers, one direction
  std::optional<std::uint64_t> pcie_generation;
  std::string source;
  std::string note;

  // What a program can have at the most: what the driver shows where that is known, else what is sold.
  Bytes capacity() const { return visible_memory.value_or(memory); }
  bool operator==(const Gpu&) const = default;
};

}  // namespace shardplan
