#include "planner/formats/training_config.h"

#include <fmt/format.h>

#include "base/checked.h"
#include "base/error.h"

namespace shardplan {
namespace {

std::uint64_t value_or_one(const Saying<std::uint64_t>& said) {
  return said ? said->value : 1;
}

void require_positive(const TrainingConfig& config, const Saying<std::uint64_t>& said) {
  if (said && said->value == 0) throw ConfigError(config.source, said->key, "expected a positive integer, found 0");
}

}  // namespace

Batch resolve_batch(const TrainingConfig& config, std::uint64_t data_parallel) {
  require_positive(config, config.global_batch);
  require_positive(config, config.micro_batch);
  require_positive(config, config.accumulation);
  Batch batch{value_or_one(config.micro_batch), value_or_one(config.accumulation)};
  if (!config.global_batch) return batch;
  const std::uint64_t global = config.global_batch->value;
  if (!config.accumulation && config.micro_batch) batch.accumulation = global / batch.micro / data_parallel;
  if (!config.micro_batch) batch.micro = global / data_parallel / batch.accumulation;
  const std::uint64_t product = checked_multiply(checked_multiply(batch.micro, batch.accumulation), data_parallel);
  if (product != global) {
    throw ConfigError(config.source, config.global_batch->key,
                      fmt::format("expected micro-batch x accumulation x data ranks = {} x {} x {} = {}, found {}",
                                  batch.micro, batch.accumulation, data_parallel, product, global));
  }
  return batch;
}

}  // namespace shardplan
