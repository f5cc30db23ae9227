// Inside engine deepspeed: what its two optimizers hold.
#pragma once

#include <vector>

#include "planner/engines/deepspeed.h"
#include "planner/engines/owned.h"

namespace shardplan {

struct DeepSpeedPlan {
  const Catalog& catalog;
  Setup setup;  // replicate says over how many ranks is sharded
  DeepSpeedOptions options;
  std::vector<OwnedRun> runs;
  std::uint64_t gpus_per_node = 8;
};

// What gradients of micro-batches are added up in. engine.py, get_data_types.
DType accumulation_dtype(const DeepSpeedPlan& plan, const Policy& policy);
// What gradients travel in. engine.py, communication_data_type and _configure_distributed_model.
DType wire_dtype(const DeepSpeedPlan& plan);
// DeepSpeed keeps a copy of what is trained in any case, except in full fp32 at stages 0 and 3.
DType master_dtype(const Policy& policy);

PersistentTensors persistent_tensors(const std::vector<OwnedRun>& runs, const DeepSpeedOptions& options);
std::vector<std::uint64_t> sub_groups(const std::vector<OwnedRun>& runs, const DeepSpeedOptions& options);

// zero_quantized_nontrainable_weights: whether a tensor's shards are kept in 8 bits, and the bytes of one.
bool kept_quantized(const DeepSpeedPlan& plan, const Owned& owned);
Bytes quantized_shard_bytes(const Owned& owned);
// Gradients among nodes: zero_quantized_gradients has a part in it only where there is more than one.
void add_quantized_gradients(const DeepSpeedPlan& plan, TermList& list);
bool gradients_quantized(const DeepSpeedPlan& plan);

void add_stages0_to_2(const DeepSpeedPlan& plan, TermList& list);
void add_stage3(const DeepSpeedPlan& plan, TermList& list);

}  // namespace shardplan
