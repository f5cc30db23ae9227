#include "tests/shard/training_run.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <utility>

#include "offload/recording_tier.h"
#include "runtime/cpu_device.h"
#include "tests/support/run_ranks.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/thread_exchange.h"

namespace shardplan::test {
namespace {

Tensor tensor_of(std::string name, Shape shape, std::optional<DType> dtype = {}, bool trainable = true) {
  Tensor tensor;
  tensor.name = std::move(name);
  tensor.shape = std::move(shape);
  tensor.dtype = dtype;
  tensor.trainable = trainable;
  return tensor;
}

Tensor tied(std::string name, Shape shape, std::string owner) {
  Tensor tensor = tensor_of(std::move(name), std::move(shape));
  tensor.tied_to = std::move(owner);
  return tensor;
}

// The payload of a NaN is not promised.
bool same(double a, double b) {
  return std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b) || (!std::isfinite(a) && !std::isfinite(b));
}

struct RankTrained {
  Trained outcome;
  RecordingDevice::Report memory;
  RecordingDevice::Report pinned;
  RecordingTier::Report file;
  std::uint64_t allocations = 0;
};

// Files of the optimizer's in `folder`, watched by `*watched`.
OffloadOptions recorded_files(const std::string& folder, RecordingTier** watched) {
  return {.folder = folder, .threads = 2, .make_tier = [watched](const FileTierOptions& file) {
            auto tier = std::make_unique<RecordingTier>(std::make_unique<FileTier>(file));
            *watched = tier.get();
            return tier;
          }};
}

RankTrained run_rank(const Catalog& catalog, const StepPlan& plan, ZeroOptions options, const Script& script,
                     Device& device, Communicator& world, const std::string& folder) {
  RankTrained result;
  RecordingDevice recording(device);
  RecordingTier* file = nullptr;
  options.offload = recorded_files(folder, &file);
  const RankGroups groups(world, plan.setup);
  ZeroOptimizer optimizer(catalog, plan, recording, groups.communicators(), options);
  SyntheticClient client(script, plan.setup, plan.layout.units, world.rank());
  for (std::uint64_t step = 0; step < script.micro_batches.size(); ++step) {
    result.outcome.reports.push_back(client.run_step(optimizer, step));
  }
  result.memory = recording.report(MemoryTier::device);
  if (plan.pinned.bytes > 0_B) result.pinned = recording.report(MemoryTier::pinned_host);
  client.run(optimizer, ProgramKind::evaluate, 0, 0);
  EXPECT_EQ(recording.report(MemoryTier::device), result.memory) << "after an evaluation";
  result.outcome.parameters = parameters_of(optimizer);
  result.outcome.digests = client.digests();
  result.allocations = client.allocations();
  if (file != nullptr) result.file = file->report();
  return result;
}

}  // namespace

Catalog odd_catalog() {
  CatalogBuilder builder("odd", "tensors");
  builder.begin_unit("embed");
  builder.add(tensor_of("embed.weight", {37, 12}));
  builder.begin_unit("one");
  builder.add(tensor_of("one.scale", {}));
  builder.add_run("layers", 0, 3,
                  {tensor_of("weight", {24, 17}), tensor_of("router", {5, 3}, DType::f32), tensor_of("norm.bias", {7}),
                   tensor_of("base", {33}, DType::bf16, false), tensor_of("adapter", {2, 9}, DType::f16),
                   tensor_of("table", {11}, std::nullopt, false)});
  builder.begin_unit("frozen");
  builder.add(tensor_of("frozen.weight", {19, 5}, std::nullopt, false));
  builder.begin_unit("nothing");
  builder.begin_unit("hollow");
  builder.add(tensor_of("hollow.weight", {0, 8}));
  builder.begin_unit("wide");
  builder.add(tensor_of("wide.weight", {3000, 3}));
  builder.add(tied("wide.embed", {37, 12}, "embed.weight"));
  builder.begin_unit("head");
  builder.add(tensor_of("head.norm", {12}));
  builder.add(tied("head.weight", {37, 12}, "embed.weight"));
  builder.add(tensor_of("head.mix", {13}));
  builder.add(tied("head.unmix", {13}, "head.mix"));
  return builder.finish();
}

RankGroups::RankGroups(Communicator& world, const Setup& setup) {
  communicators_ = {.world = &world, .shard_group = &world};
  if (setup.replicate == 1) return;
  const auto rank = static_cast<std::uint64_t>(world.rank());
  shard_group_ = world.split(static_cast<int>(rank / shard_count(setup)), world.rank());
  replicas_ = world.split(static_cast<int>(rank % shard_count(setup)), world.rank());
  communicators_.shard_group = shard_group_.get();
  communicators_.replicas = replicas_.get();
}

std::string difference(const StepReport& actual, const StepReport& expected) {
  if (actual.step != expected.step) return fmt::format("step {}, expected {}", actual.step, expected.step);
  if (actual.skipped != expected.skipped)
    return fmt::format("skipped {}, expected {}", actual.skipped, expected.skipped);
  if (!same(actual.norm, expected.norm)) return fmt::format("norm {:a}, expected {:a}", actual.norm, expected.norm);
  for (std::size_t i = 0; i < kMostGroups; ++i) {
    if (same(actual.group_norms[i], expected.group_norms[i])) continue;
    return fmt::format("norm of group {}: {:a}, expected {:a}", i, actual.group_norms[i], expected.group_norms[i]);
  }
  if (!expected.skipped && !same(actual.clip_factor, expected.clip_factor)) {
    return fmt::format("clip factor {:a}, expected {:a}", actual.clip_factor, expected.clip_factor);
  }
  if (actual.loss_scale != expected.loss_scale || actual.next_loss_scale != expected.next_loss_scale) {
    return fmt::format("loss scale {} then {}, expected {} then {}", actual.loss_scale, actual.next_loss_scale,
                       expected.loss_scale, expected.next_loss_scale);
  }
  return "";
}

std::string difference(const Trained& actual, const Trained& expected) {
  if (actual.reports.size() != expected.reports.size()) return "another number of steps";
  for (std::size_t i = 0; i < actual.reports.size(); ++i) {
    const std::string found = difference(actual.reports[i], expected.reports[i]);
    if (!found.empty()) return fmt::format("step {}: {}", i, found);
  }
  for (std::size_t i = 0; i < expected.digests.size(); ++i) {
    if (i < actual.digests.size() && actual.digests[i] == expected.digests[i]) continue;
    return fmt::format("program {} shows other parameters", i);
  }
  if (actual.parameters.size() != expected.parameters.size()) return "another number of tensors";
  for (std::size_t t = 0; t < actual.parameters.size(); ++t) {
    if (actual.parameters[t].size() != expected.parameters[t].size()) return fmt::format("tensor {}: length", t);
    for (std::size_t i = 0; i < actual.parameters[t].size(); ++i) {
      const float a = actual.parameters[t][i];
      const float e = expected.parameters[t][i];
      if (std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(e)) continue;
      return fmt::format("tensor {}, element {}: {:a}, expected {:a}", t, i, a, e);
    }
  }
  return "";
}

std::vector<std::vector<float>> parameters_of(ZeroOptimizer& optimizer) {
  std::vector<std::vector<float>> parameters;
  optimizer.visit_parameters([&](const TensorRange&, std::span<const float> values) {
    parameters.emplace_back(values.begin(), values.end());
  });
  return parameters;
}

Trained run_reference(const Catalog& catalog, const Setup& setup, const ZeroOptions& options, const Script& script) {
  Trained outcome;
  ReferenceOptimizer reference(catalog, setup, options);
  for (std::uint64_t step = 0; step < script.micro_batches.size(); ++step) {
    outcome.digests.insert(outcome.digests.end(), script.micro_batches[step],
                           reference.parameter_digest(ProgramKind::last_micro_batch));
    outcome.reports.push_back(reference.run_step(script, step));
  }
  outcome.digests.push_back(reference.parameter_digest(ProgramKind::evaluate));
  outcome.parameters = reference.parameters();
  return outcome;
}

void expect_run(const Catalog& catalog, const Setup& setup, const ZeroOptions& options, const Script& script,
                const Trained& expected, const Adaptors& adaptors) {
  const StepPlan plan = make_step_plan(catalog, setup);
  CpuDevice cpu;
  const test_support::TemporaryFolder folder;
  std::vector<RankTrained> ranks(setup.world_size);
  const int size = static_cast<int>(setup.world_size);
  auto worlds = setup.transport == Transport::staged ? make_staged_communicators(size, std::chrono::minutes{1})
                                                     : make_local_communicators(size);
  const auto outcomes = outcomes_of_ranks(std::move(worlds), [&](std::unique_ptr<Communicator> world) {
    if (adaptors.communicator) world = adaptors.communicator(std::move(world));
    const std::unique_ptr<Device> device = adaptors.device ? adaptors.device(cpu, world->rank()) : nullptr;
    ranks[static_cast<std::size_t>(world->rank())] =
        run_rank(catalog, plan, options, script, device ? *device : cpu, *world, folder.path());
  });
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    SCOPED_TRACE(fmt::format("rank {}", rank));
    ASSERT_EQ(message_of(outcomes[rank]), "");
    EXPECT_EQ(difference(ranks[rank].outcome, expected), "");
    EXPECT_EQ(ranks[rank].memory.held, plan.device.bytes);
    EXPECT_EQ(ranks[rank].memory.high_water, plan.device.bytes);
    EXPECT_EQ(ranks[rank].memory.live_peak, plan.device.live_peak);
    EXPECT_EQ(ranks[rank].pinned.held, plan.pinned.bytes);
    EXPECT_EQ(ranks[rank].pinned.high_water, plan.pinned.bytes);
    EXPECT_EQ(ranks[rank].pinned.live_peak, plan.pinned.live_peak);
    EXPECT_EQ(ranks[rank].file.high_water, plan.file.bytes);
    EXPECT_EQ(ranks[rank].file.live, plan.file.live_peak);
    EXPECT_EQ(ranks[rank].allocations, 0U);
  }
}

}  // namespace shardplan::test
