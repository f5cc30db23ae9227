#include "planner/snapshot.h"

namespace shardplan {
namespace {

// Of one element of a flat buffer: the dtypes that ZeroOptimizer::visit_state() gives (shard/state.h).
std::uint64_t state_bits(const BufferPlan& buffer, const Setup& setup) {
  const Policy& policy = buffer.policy;
  if (!buffer.trainable) return bits(policy.parameter);
  const OptimizerStates& states = states_of(setup.optimizer);
  std::uint64_t sum = bits(policy.master.value_or(policy.parameter));
  if (states.first_moment) sum += bits(policy.first_moment);
  if (states.second_moment) sum += bits(policy.second_moment);
  if (setup.ema) sum += bits(DType::f32);
  return sum;
}

}  // namespace

Bytes snapshot_bytes(const StepPlan& plan) {
  Bytes sum;
  for (std::size_t run = 0; run < plan.layout.runs.size(); ++run) {
    const LayoutRun& layout = plan.layout.runs[run];
    for (std::size_t b = 0; b < layout.unit.buffers.size(); ++b) {
      // Replica 0's share is the largest.
      const std::uint64_t part = replica_range(layout.unit.buffers[b], 0, plan.layout.replicas).size();
      const std::uint64_t part_bits = checked_multiply(part, state_bits(plan.buffers[run][b], plan.setup));
      sum += layout.count * Bytes{round_up(part_bits, std::uint64_t{8}) / 8};
    }
  }
  return sum;
}

void add_snapshot(RankReport& rank, Bytes snapshot) {
  for (std::optional<Bytes>* bytes : {&rank.host.pageable, &rank.host.total}) {
    if (*bytes) **bytes += snapshot;
  }
  if (rank.arenas) rank.arenas->host += snapshot;
}

}  // namespace shardplan
