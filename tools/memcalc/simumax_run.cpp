#include "tools/memcalc/simumax_run.h"

#include <boost/json.hpp>

namespace shardplan {

boost::json::object simumax_arguments(const SimuMaxRun& run) {
  return {{"num-layers", run.layers},
          {"hidden-size", run.large ? 16384 : 8192},
          {"ffn-hidden-size", run.large ? 53248 : 28672},
          {"num-attention-heads", run.large ? 128 : 64},
          {"group-query-attention", true},
          {"num-query-groups", run.large ? 16 : 8},
          {"seq-length", run.sequence},
          {"max-position-embeddings", run.sequence},
          {"micro-batch-size", run.micro_batch},
          {"global-batch-size", run.micro_batches * run.micro_batch * run.data()},
          {"tensor-model-parallel-size", run.tensor},
          {"pipeline-model-parallel-size", run.pipeline},
          {"context-parallel-size", run.context},
          {"sequence-parallel", run.tensor > 1},
          {"cp-comm-type", "a2a"},
          {"vocab-size", 128257},
          {"swiglu", true},
          {"normalization", "RMSNorm"},
          {"disable-bias-linear", true},
          {"untie-embeddings-and-output-weights", true},
          {"position-embedding-type", "rope"},
          {"hidden-dropout", 0.0},
          {"attention-dropout", 0.0},
          {"cross-entropy-loss-fusion", true},
          {"cross-entropy-fusion-impl", "te"},
          {"no-create-attention-mask-in-dataloader", true},
          {"use-distributed-optimizer", true},
          {"bf16", true}};
}

boost::json::object simumax_environment() {
  return {{"CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8"}};
}

}  // namespace shardplan
