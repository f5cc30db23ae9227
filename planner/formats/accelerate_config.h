// The YAML that `accelerate config` writes and `accelerate launch` reads (accelerate 16cb6eb8: commands/config/config_args.py,
// commands/launch.py, utils/launch.py, utils/dataclasses.py, parallelism_config.py).
//
//   distributed_type FSDP       engine fsdp2. Version 1: FULL_SHARD is stage 3, SHARD_GRAD_OP 2, HYBRID_SHARD 3 within a
//                               node and copies across, HYBRID_SHARD_ZERO2 the same with 2; planned as version 2.
//                               Version 2: fsdp_reshard_after_forward true is stage 3, false 2
//   DEEPSPEED                   engine deepspeed: deepspeed_config_file, relative to the YAML, or the keys beside it
//                               (zero_stage 2 if none is given)
//   MEGATRON_LM                 engine megatron
//   MULTI_GPU, NO, NO_SHARD     DistributedDataParallel or one process: stage 0 of engine paper, for no engine here has
//                               DDP's buckets
//
// mixed_precision. FSDP keeps sharded fp32 parameters, and gathers and reduces in the 16 bits: bf16-mixed, fp16-mixed.
// DeepSpeed and Megatron: as they do. DDP: torch.autocast, amp-bf16, amp-fp16.
//
// Unknown keys at the top are errors, as they are to accelerate; those in a section, which it ignores, are notes. Both
// name the nearest known key.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "planner/engines/options.h"
#include "planner/formats/training_config.h"
#include "planner/report.h"
#include "planner/setup.h"

namespace shardplan {

// `source` is the file's path: deepspeed_config_file is sought beside it. Throws ConfigError, and IoError for that file.
TrainingConfig accelerate_config(std::string_view text, const std::string& source);
TrainingConfig accelerate_config_in_file(const std::string& path);

// A set-up as such a file, which reads back to the same one. Not in it, because accelerate does not say it: the
// micro-batch, the optimizer, and, but for deepspeed and megatron, the accumulation. Throws ConfigError, with the flag
// as its source, for a set-up that the file cannot say.
std::string accelerate_config_text(Engine engine, const Setup& setup, const EngineOptions& options);

}  // namespace shardplan
