#include "tools/memcalc/torchtitan_flags.h"

namespace shardplan::memcalc {
namespace {

constexpr const char* kLossFlag = "--disable-loss-parallel";
constexpr const char* kRotateFlag = "--context-rotate-method";

}  // namespace

void add_torchtitan_flags(CLI::App* app, ClientSetup& client) {
  app->add_flag_function(
      kLossFlag, [&client](std::int64_t) { client.loss_parallel = false; },
      "torchtitan: under --tp logits of all words are gathered, and each rank has the whole loss");
  add_word<bool>(app, kRotateFlag, client.context_gathers,
                 "torchtitan: how keys and values go round under --cp: allgather or alltoall (allgather)",
                 word_of<bool>(kRotateFlag, {{"allgather", true}, {"alltoall", false}}));
}

void set_torchtitan(PlanOptions& options) {
  Parallelism& parallel = options.setup.parallel;
  parallel.sequence_parallel = parallel.tensor > 1;
  if (options.engine != Engine::fsdp2) return;
  parallel.more_layers_behind_first = true;
  options.engine_options.fsdp2.reduce_dtype = DType::f32;
}

void settle_torchtitan(PlanOptions& options, const std::set<std::string>& given) {
  if (options.whole_client().profile != Profile::torchtitan) {
    for (const char* flag : {kLossFlag, kRotateFlag}) {
      if (given.contains(flag)) throw ConfigError(flag, "", "is of --profile torchtitan alone");
    }
    return;
  }
  set_torchtitan(options);
  if (given.contains("--wire-dtype")) options.engine_options.fsdp2.reduce_dtype.reset();
}

}  // namespace shardplan::memcalc
