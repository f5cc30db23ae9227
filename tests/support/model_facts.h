// A model unit by unit, for one rank: the obvious expansion of a catalog and a setup, from which tests compute what a plan
// must say. Sizes come from the layout and the policy table; nothing is folded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/catalog.h"
#include "planner/setup.h"

namespace shardplan::test_support {

struct BufferFacts {
  std::uint64_t padded = 0;
  std::uint64_t shard = 0;
  std::uint64_t granule = 1;
  bool trainable = true;
  Policy policy;
  // Where the client writes its gradient: the resident gradient, or a contribution slot.
  bool has_contribution_slot = false;
  // Cadence step, last micro-batch: whether the reduction reads that slot, or the resident sum.
  bool sum_is_in_gradient = false;
};

struct UnitFacts {
  std::size_t run = 0;
  std::vector<std::uint64_t> owners;  // earlier units whose tensors this one uses, each once
  std::vector<BufferFacts> buffers;
  bool trainable = false;  // owns an element-carrying or empty buffer with a gradient
};

// One rank's model, every unit by itself.
struct ModelFacts {
  Setup setup;
  std::uint64_t shards = 1;
  std::uint64_t replicas = 1;
  bool adds_locally = false;  // A > 1 at cadence step
  std::vector<UnitFacts> units;

  std::uint64_t backward_of(std::uint64_t unit) const { return 2 * units.size() - 1 - unit; }
};

ModelFacts facts_of(const Catalog& catalog, const Setup& setup);

// Bytes sent in one training step, from closed forms over padded buffers, summed over the expanded units.
Bytes expected_sent_in_step(const ModelFacts& facts);

}  // namespace shardplan::test_support
