// The arguments of a Megatron-LM run (training/arguments.py, d98e8a64): the model that they build and the set-up.
//
// A file is YAML or JSON:
//
//   a map of arguments          {num-layers: 24, --hidden-size: 1024, bf16: true, ...}
//   {args: {...}, env: {...}}   with the environment; its WORLD_SIZE and LOCAL_WORLD_SIZE are read. `world_size` beside
//                               them is all ranks, `script` the program (pretrain_bert.py), which decides the model
//                               where the arguments alone do not (planner/formats/megatron_sizes.h)
//   {MODEL_ARGS: {...}, ENV_VARS: {...}}   the same, as Megatron's own tests have it
//
// Precision. bf16 keeps main gradients in fp32 unless grad-reduce-in-bf16 or main-grads-dtype say otherwise; fp16 keeps
// them in fp16 unless accumulate-allreduce-grads-in-fp32; neither is fp32. fp8-format is fp8-mixed; with
// fp8-param-gather the matrices of blocks are in fp8 alone.
//
// Stage. Neither: 0. use-distributed-optimizer: 1. use-megatron-fsdp: by data-parallel-sharding-strategy, whose default
// on the command line is optim_grads_params (3). use-torch-fsdp2: engine fsdp2.
//
// Of the other arguments, those that change memory and are not counted, and those that are not known, are notes by name;
// what decides no bytes is one note.
#pragma once

#include <string>
#include <string_view>

#include "planner/activations/client.h"
#include "planner/families/megatron.h"
#include "planner/formats/json.h"
#include "planner/formats/training_config.h"

namespace shardplan {

// What the environment of a run says about memory.
struct MegatronEnvironment {
  std::string cublas_workspace_config;  // CUBLAS_WORKSPACE_CONFIG
  bool expandable_segments = false;     // PYTORCH_CUDA_ALLOC_CONF
};

struct MegatronRun {
  MegatronSizes sizes;
  Model model;  // megatron_model of them, named after the file
  TrainingConfig config;
  ClientSetup client;  // whose activations: profile megatron
  MegatronEnvironment environment;
};

// `source` names the text in errors and is the model's name. Throws ConfigError.
MegatronRun read_megatron_args(std::string_view text, const std::string& source);
MegatronRun read_megatron_args(JsonView root);

// Also throws IoError.
MegatronRun megatron_args_in_file(const std::string& path);

// A model and its set-up as such a file, in the form of Megatron's own tests (MODEL_ARGS), which reads back to the same
// ones; with the arguments that Megatron's checks ask for beside them. Without `sequence`, as long as max_positions.
// Throws ConfigError, with the flag as its source, for what the arguments cannot say.
std::string megatron_args_text(const MegatronSizes& sizes, const Setup& setup, const MegatronOptions& options,
                               const ExpertLoad& load, std::uint64_t micro_batch,
                               std::optional<std::uint64_t> sequence);

}  // namespace shardplan
