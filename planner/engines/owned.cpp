#include "planner/engines/owned.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace shardplan {

std::vector<OwnedRun> owned_tensors(const Catalog& catalog, const Setup& setup) {
  std::vector<OwnedRun> runs;
  runs.reserve(catalog.runs.size());
  for (const UnitRun& run : catalog.runs) {
    OwnedRun owned{.count = run.count, .block = run.numbered, .tensors = {}};
    for (const Tensor& tensor : run.tensors) {
      if (!tensor.tied_to.empty()) continue;
      const std::uint64_t ranks = data_ranks(setup, tensor);
      if (ranks % setup.replicate != 0) {
        throw ConfigError("--replicate", "",
                          fmt::format("{} does not divide the {} data ranks of experts", setup.replicate, ranks));
      }
      owned.tensors.push_back({.tensor = &tensor,
                               .elements = elements(tensor.shape),
                               .ranks = tensor.scales ? 1 : ranks / setup.replicate,
                               .policy = policy_for(setup.policy, tensor.dtype),
                               .updated = updated_tensor(run, tensor)});
    }
    runs.push_back(std::move(owned));
  }
  return runs;
}

bool in_group(const Owned& owned, const TensorGroup& group, const Setup& setup) {
  const bool apart = setup.optimizer == OptimizerKind::muon;
  return owned.tensor->trainable && owned.ranks == group.ranks && owned.policy == group.policy &&
         (!apart || owned.updated.hidden_matrix == group.hidden_matrices);
}

std::vector<TensorGroup> trainable_groups(const std::vector<OwnedRun>& runs, const Setup& setup) {
  std::vector<TensorGroup> groups;
  for (const OwnedRun& run : runs) {
    for (const Owned& owned : run.tensors) {
      if (!owned.tensor->trainable) continue;
      auto group = std::find_if(groups.begin(), groups.end(),
                                [&](const TensorGroup& candidate) { return in_group(owned, candidate, setup); });
      if (group == groups.end()) {
        const bool hidden = setup.optimizer == OptimizerKind::muon && owned.updated.hidden_matrix;
        group = groups.insert(group, {.ranks = owned.ranks, .policy = owned.policy, .hidden_matrices = hidden});
      }
      group->elements = checked_add(group->elements, checked_multiply(run.count, owned.elements));
      group->largest = std::max(group->largest, owned.elements);
    }
  }
  return groups;
}

Bytes moment_bytes(const Setup& setup, const Policy& policy, const UpdatedTensor& tensor) {
  const Bytes average = setup.ema ? bytes_for(DType::f32, elements(tensor.shape)) : Bytes{};
  return state_bytes(tensor, optimizer_choice(setup), policy) + average;
}

Bytes flat_moment_bytes(const Setup& setup, const Policy& policy, std::uint64_t count, bool hidden_matrices) {
  return moment_bytes(setup, policy, {.shape = {count}, .hidden_matrix = hidden_matrices});
}

Bytes whole_moment_bytes(const Setup& setup, const std::vector<OwnedRun>& runs, const TensorGroup& group,
                         const Policy& policy) {
  return sum_bytes(runs, [&](const Owned& owned) {
    return in_group(owned, group, setup) ? moment_bytes(setup, policy, owned.updated) : Bytes{};
  });
}

Bytes largest_tensor_bytes(const std::vector<OwnedRun>& runs) {
  Bytes largest;
  for (const OwnedRun& run : runs) {
    for (const Owned& owned : run.tensors) {
      if (owned.tensor->trainable) largest = std::max(largest, bytes_for(owned.policy.parameter, owned.elements));
    }
  }
  return largest;
}

std::string counted(std::uint64_t count, DType dtype) {
  return fmt::format("{} elements x {} B ({})", with_commas(count), static_cast<double>(bits(dtype)) / 8, name(dtype));
}

}  // namespace shardplan
