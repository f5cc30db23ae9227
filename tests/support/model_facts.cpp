#include "tests/support/model_facts.h"

#include <map>
#include <set>
#include <string>
#include <utility>

#include "planner/layout.h"

namespace shardplan::test_support {
namespace {

BufferFacts buffer_facts(const ModelFacts& model, const BufferLayout& layout) {
  BufferFacts buffer{.padded = layout.padded_elements,
                     .shard = layout.shard_elements,
                     .granule = layout.granule,
                     .trainable = layout.trainable,
                     .policy = policy_for(model.setup.policy, layout.dtype)};
  const Policy& policy = buffer.policy;
  const bool gradient_is_accumulator = policy.gradient == policy.gradient_accumulator;
  const bool whole_gradient = model.setup.stage <= 1 || model.shards == 1;
  const bool written_in_place =
      whole_gradient && policy.wire == policy.gradient && !(model.setup.accumulation > 1 && gradient_is_accumulator);
  buffer.has_contribution_slot = buffer.trainable && !written_in_place;
  buffer.sum_is_in_gradient = model.adds_locally && gradient_is_accumulator && policy.wire == policy.gradient;
  return buffer;
}

}  // namespace

ModelFacts facts_of(const Catalog& catalog, const Setup& setup) {
  ModelFacts model{.setup = setup,
                   .shards = setup.world_size / setup.replicate,
                   .replicas = setup.replicate,
                   .adds_locally = false,
                   .units = {}};
  const bool by_step = setup.cadence ? *setup.cadence == Cadence::step : setup.stage < 2;
  model.adds_locally = setup.accumulation > 1 && by_step;
  const Layout layout = make_layout(catalog, model.shards, model.replicas);
  std::map<std::string, std::uint64_t> unit_of_tensor;
  for (std::size_t run = 0; run < catalog.runs.size(); ++run) {
    for (std::uint64_t i = 0; i < catalog.runs[run].count; ++i) {
      UnitFacts unit{.run = run, .owners = {}, .buffers = {}};
      std::set<std::uint64_t> owners;
      for (const Tensor& tensor : catalog.runs[run].tensors) {
        const std::uint64_t self = model.units.size();
        unit_of_tensor[tensor_name(catalog.runs[run], i, tensor)] = self;
        if (!tensor.tied_to.empty()) owners.insert(unit_of_tensor.at(tensor.tied_to));
        owners.erase(self);
      }
      unit.owners.assign(owners.begin(), owners.end());
      for (const BufferLayout& buffer : layout.runs[run].unit.buffers) {
        unit.buffers.push_back(buffer_facts(model, buffer));
        unit.trainable |= buffer.trainable;
      }
      model.units.push_back(std::move(unit));
    }
  }
  return model;
}

Bytes expected_sent_in_step(const ModelFacts& facts) {
  const std::uint64_t peers = facts.shards - 1;
  const std::uint64_t micro_batches = facts.setup.accumulation;
  const std::uint64_t reductions = facts.adds_locally ? 1 : micro_batches;
  std::vector<std::uint64_t> uses(facts.units.size(), 2 * micro_batches);  // forward and backward
  for (const UnitFacts& unit : facts.units) {
    for (const std::uint64_t owner : unit.owners) uses[owner] += 2 * micro_batches;
  }
  Bytes total;
  for (std::size_t unit = 0; unit < facts.units.size(); ++unit) {
    for (const BufferFacts& buffer : facts.units[unit].buffers) {
      const auto to_peers = [&](DType dtype) { return peers * bytes_for(dtype, buffer.shard); };
      const Policy& policy = buffer.policy;
      if (facts.setup.stage == 3) total += uses[unit] * to_peers(policy.parameter);
      if (!buffer.trainable) continue;
      total += reductions * to_peers(policy.wire);
      if (facts.setup.stage == 0) total += to_peers(policy.gradient);
      if (facts.setup.stage == 1 || facts.setup.stage == 2) total += to_peers(policy.parameter);
      if (facts.replicas == 1) continue;
      // The replica with the most granules of the shard: the others' elements go out, then its sums come back.
      const std::uint64_t own = divide_up(buffer.shard / buffer.granule, facts.replicas) * buffer.granule;
      total += reductions * bytes_for(DType::f32, buffer.shard - own + own * (facts.replicas - 1));
    }
  }
  return total;
}

}  // namespace shardplan::test_support
