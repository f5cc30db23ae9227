// ds_config.json of DeepSpeed 0.19.6 (edaa7221): runtime/config.py, runtime/constants.py, runtime/zero/config.py,
// runtime/zero/offload_config.py, runtime/precision_config.py, runtime/swap_tensor/aio_config.py.
//
// Read as DeepSpeed reads it: what is absent has its defaults; "auto" is absent; each stage3_x is also x; numbers may be
// written 5e8; deprecated keys (cpu_offload, cpu_offload_param, stage3_gather_fp16_weights_on_model_save, "bfloat16",
// zero_optimization: true) mean what they meant. The three batch keys go into TrainingConfig as they are
// (resolve_batch), and what the file leaves to the launcher (ranks, "auto") stays empty.
//
// Unknown keys are errors where DeepSpeed refuses them or ignores a misspelling that decides bytes: in
// zero_optimization, offload_param, offload_optimizer, fp16, bf16, activation_checkpointing and data_types, with the
// nearest known key. At the top and elsewhere they are notes, since other programs keep their keys there.
//
// What the optimizer is follows from optimizer.type; types without a size of their own are notes, and the choice is left
// to the flags.
#pragma once

#include <string>
#include <string_view>

#include "planner/formats/json.h"
#include "planner/formats/training_config.h"

namespace shardplan {

// Throw ConfigError with the file and the key; ds_config_in_file also IoError.
TrainingConfig ds_config(JsonView root);
TrainingConfig ds_config(std::string_view text, const std::string& source);
TrainingConfig ds_config_in_file(const std::string& path);

}  // namespace shardplan
