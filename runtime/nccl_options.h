// What an NCCL communicator is made from. No type of the vendor is here: the communicator is in a module that is loaded
// at run time (shard/cuda_backend.h).
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <span>

#include "base/bytes.h"

namespace shardplan {

struct NcclOptions {
  int rank = 0;
  int size = 1;
  // Of each wait for a peer, from the moment when the GPU comes to the operation.
  std::chrono::milliseconds deadline{60'000};
  // NCCL's own order of sums instead of the plan's reduction tree: less traffic, and a tolerance instead of equal bits.
  bool fast = false;
  // Device memory of each communicator in fast mode, beside the arenas: sums on their way from the wire dtype to the
  // output. Less of it means more and smaller messages.
  Bytes fast_buffer = 16_MiB;
  // How ranks find each other, once: an all-gather of records of equal length over any other channel (MPI, files, a
  // torch store). Called on every rank, by the constructor only. Not called for one rank.
  std::function<void(std::span<const std::byte> mine, std::span<std::byte> all)> all_gather;
};

}  // namespace shardplan
