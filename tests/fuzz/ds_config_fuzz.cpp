// Any bytes as a ds_config.json: a configuration whose set-up, written again, reads back the same; or an Error.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "planner/engines/deepspeed.h"
#include "planner/formats/ds_config.h"
#include "planner/formats/ds_config_writer.h"

namespace shardplan {
namespace {

struct Chosen {
  Setup setup;
  DeepSpeedOptions options;
  std::uint64_t micro_batch = 1;
};

Chosen setup_of(const TrainingConfig& config) {
  Chosen said;
  said.setup.world_size = 64;
  said.setup.stage = config.stage.value().value;
  if (config.optimizer) said.setup.optimizer = config.optimizer->value;
  if (config.precision) said.setup.policy = policy_named(config.precision->value);
  if (config.dtypes.master) said.setup.policy.master = config.dtypes.master->value;
  if (config.dtypes.moments) {
    said.setup.policy.first_moment = said.setup.policy.second_moment = config.dtypes.moments->value;
  }
  const Batch batch = resolve_batch(config, said.setup.world_size);
  said.setup.accumulation = batch.accumulation;
  said.micro_batch = batch.micro;
  said.options = config.deepspeed.value();
  settle_deepspeed(said.setup, said.options);
  return said;
}

void check(const TrainingConfig& config) {
  SHARDPLAN_CHECK(config.stage.has_value() && config.deepspeed.has_value(), "a file without a stage or options");
  const Chosen first = setup_of(config);
  const std::string text = ds_config_text(first.setup, first.options, first.micro_batch);
  const Chosen second = setup_of(ds_config(text, "written"));
  SHARDPLAN_CHECK(second.options == first.options, "other options, read back");
  SHARDPLAN_CHECK(second.setup.stage == first.setup.stage, "another stage, read back");
  SHARDPLAN_CHECK(second.setup.accumulation == first.setup.accumulation, "another accumulation, read back");
  SHARDPLAN_CHECK(second.micro_batch == first.micro_batch, "another micro-batch, read back");
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer calls it by this name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(ds_config({reinterpret_cast<const char*>(data), size}, "fuzz"));
  } catch (const Error&) {  // the answer to bad input
  }
  return 0;
}

}  // namespace shardplan
