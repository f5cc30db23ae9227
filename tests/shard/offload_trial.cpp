#include "tests/shard/offload_trial.h"

#include <map>
#include <memory>

#include "offload/file_tier.h"
#include "planner/offload.h"
#include "tests/support/run_ranks.h"

namespace shardplan::test {

Setup trial_setup(const char* offload, const char* precision, int stage, std::uint64_t accumulation) {
  Setup setup;
  setup.policy = policy_named(precision);
  setup.stage = stage;
  setup.ema = true;
  setup.accumulation = accumulation;
  setup.offload = parse_offload(offload).offload;
  setup.offload.block_elements = 2048;
  return setup;
}

ZeroOptions trial_options(const std::string& folder, int threads) {
  ZeroOptions options;
  options.clip_norm = 0.5;
  options.initial_values = synthetic_values;
  options.offload.folder = folder;
  options.offload.threads = threads;
  return options;
}

const Script& trial_script(std::uint64_t accumulation) {
  static std::map<std::uint64_t, Script> scripts;
  Script& script = scripts[accumulation];
  script.micro_batches.assign(kTrialSteps, accumulation);
  return script;
}

Trained trial_expected(const Catalog& catalog, Setup setup) {
  setup.offload = {};
  Trained expected = run_reference(catalog, setup, trial_options("", 0), trial_script(setup.accumulation));
  expected.digests.clear();
  return expected;
}

void Trial::with(int threads, const std::function<void(ZeroOptimizer&, SyntheticClient&)>& body, Device* device) {
  run_ranks(1, [&](Communicator& world) {
    ZeroOptions options = trial_options(folder.path(), threads);
    options.offload.make_tier = [&](const FileTierOptions& file) {
      auto made = std::make_unique<FailingTier>(std::make_unique<FileTier>(file));
      tier = made.get();
      return made;
    };
    ZeroOptimizer optimizer(catalog, plan, device == nullptr ? cpu : *device, {&world, &world}, options);
    SyntheticClient client(trial_script(setup.accumulation), setup, plan.layout.units, 0);
    body(optimizer, client);
  });
}

std::uint64_t operations_of_a_step(const Setup& setup) {
  Trial run(setup);
  std::uint64_t operations = 0;
  run.with(0, [&](ZeroOptimizer& optimizer, SyntheticClient& client) {
    run.step(optimizer, client, 0);
    const std::uint64_t before = run.tier->operations();
    run.step(optimizer, client, 1);
    operations = run.tier->operations() - before;
  });
  return operations;
}

}  // namespace shardplan::test
