// Simulated == measured: the same catalog and set-up on threads with real memory and on virtual ranks. What each rank
// holds, sends and does is the same, difference 0.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/hf_config.h"
#include "runtime/cpu_device.h"
#include "runtime/interposed_communicator.h"
#include "runtime/recording_device.h"
#include "tests/support/run_ranks.h"
#include "tests/support/synthetic_client.h"
#include "tools/simulate/simulation.h"

namespace shardplan::test {
namespace {

struct Counts {
  Bytes arena;
  Bytes live_peak;
  Bytes sent;
  std::uint64_t operations = 0;
  bool operator==(const Counts&) const = default;
};

// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for it
void PrintTo(const Counts& counts, std::ostream* out) {
  *out << fmt::format("arena {}, live peak {}, sent {}, operations {}", counts.arena.count(), counts.live_peak.count(),
                      counts.sent.count(), counts.operations);
}

// Kernels and copies that touch memory; collectives announce themselves with no bytes, and are counted as calls.
class CountingStream final : public Stream {
 public:
  CountingStream(std::unique_ptr<Stream> inner, Counts& counts) : inner_(std::move(inner)), counts_(counts) {}
  void copy(std::byte* to, const std::byte* from, Bytes bytes) override {
    count(bytes);
    inner_->copy(to, from, bytes);
  }
  void zero(std::byte* at, Bytes bytes) override {
    count(bytes);
    inner_->zero(at, bytes);
  }
  void record(Event& event) override { inner_->record(event); }
  void wait(Event& event) override { inner_->wait(event); }
  void synchronize() override { inner_->synchronize(); }
  void launching(std::string_view kernel, Bytes touched) override {
    count(touched);
    inner_->launching(kernel, touched);
  }

 private:
  void count(Bytes touched) { counts_.operations += touched > Bytes{} ? 1U : 0U; }

  std::unique_ptr<Stream> inner_;
  Counts& counts_;
};

class CountingDevice final : public ForwardingDevice {
 public:
  CountingDevice(Device& inner, Counts& counts) : ForwardingDevice(inner), counts_(counts) {}
  std::unique_ptr<Stream> make_stream() override {
    return std::make_unique<CountingStream>(ForwardingDevice::make_stream(), counts_);
  }

 private:
  Counts& counts_;
};

class CountingCommunicator final : public InterposedCommunicator {
 public:
  CountingCommunicator(std::unique_ptr<Communicator> inner, Counts& counts)
      : InterposedCommunicator(std::move(inner)), counts_(counts) {}
  void reduce_scatter(const ReduceScatter& call, Stream& stream) override {
    counts_.sent += bytes_for(call.wire, call.elements - call.mine.count);
    InterposedCommunicator::reduce_scatter(call, stream);
  }
  void all_gather(const AllGather& call, Stream& stream) override {
    counts_.sent += bytes_for(call.dtype, call.mine.count * static_cast<std::uint64_t>(size() - 1));
    InterposedCommunicator::all_gather(call, stream);
  }

 protected:
  void before(const char*) override { ++counts_.operations; }
  std::unique_ptr<Communicator> wrap(std::unique_ptr<Communicator> inner) const override {
    return std::make_unique<CountingCommunicator>(std::move(inner), counts_);
  }

 private:
  Counts& counts_;
};

// One step by each rank, on threads.
std::vector<Counts> measured(const Model& model, const StepPlan& plan) {
  std::vector<Counts> counts(plan.setup.world_size);
  const Script script{.micro_batches = {plan.setup.accumulation}, .poisons = {}, .silent_unit = {}};
  const auto body = [&](std::unique_ptr<Communicator> communicator) {
    Counts& mine = counts[static_cast<std::size_t>(communicator->rank())];
    CpuDevice cpu;
    RecordingDevice recording(cpu);
    CountingDevice device(recording, mine);
    CountingCommunicator world(std::move(communicator), mine);
    const RankPlace place = place_of_rank(plan.layout, static_cast<std::uint64_t>(world.rank()));
    Communicators groups{.world = &world, .shard_group = &world};
    std::unique_ptr<Communicator> shard_group;
    std::unique_ptr<Communicator> replicas;
    if (plan.setup.replicate > 1) {
      shard_group = world.split(static_cast<int>(place.replica), world.rank());
      replicas = world.split(static_cast<int>(place.shard), world.rank());
      groups.shard_group = shard_group.get();
      groups.replicas = replicas.get();
    }
    ZeroOptions options;
    options.initial_values = synthetic_values;
    ZeroOptimizer optimizer(model.catalog, plan, device, groups, options);
    SyntheticClient client(script, plan.setup, plan.layout.units, world.rank());
    mine = {};
    client.run_step(optimizer, 0);
    const RecordingDevice::Report report = recording.report(MemoryTier::device);
    mine.arena = report.high_water;
    mine.live_peak = report.live_peak;
  };
  for (const std::exception_ptr& outcome : outcomes_of_ranks(static_cast<int>(counts.size()), body)) {
    EXPECT_EQ(message_of(outcome), "");
  }
  return counts;
}

std::vector<Counts> simulated(const Model& model, const StepPlan& plan) {
  const Simulation simulation = simulate(model, plan,
                                         {.cluster = require_cluster("h100", gpu_table({})),
                                          .work = {.tokens = 16, .sequence = 16, .compute = DType::f32}});
  const std::uint64_t passes = plan.setup.recompute == Recompute::full ? 3 : 2;  // by the client, over each unit
  std::vector<Counts> counts;
  for (const SimulatedRank& rank : simulation.ranks) {
    EXPECT_EQ(rank.error, "");
    const std::uint64_t of_client = passes * plan.layout.units * plan.setup.accumulation;
    counts.push_back({rank.arena, rank.live_peak, rank.sent, rank.operations - of_client});
  }
  return counts;
}

void expect_equal(const Model& model, const Setup& setup) {
  SCOPED_TRACE(fmt::format("{}: stage {}, world {}, replicate {}, accumulation {}", model.catalog.name, setup.stage,
                           setup.world_size, setup.replicate, setup.accumulation));
  const StepPlan plan = make_step_plan(model.catalog, setup);
  const std::vector<Counts> real = measured(model, plan);
  EXPECT_EQ(simulated(model, plan), real);
  for (const Counts& counts : real) {
    EXPECT_EQ(counts.arena, plan.device.bytes);
    EXPECT_GT(counts.operations, plan.layout.units);
  }
}

Tensor tensor_of(std::string name, Shape shape, std::optional<DType> dtype = {}, bool trainable = true) {
  Tensor tensor;
  tensor.name = std::move(name);
  tensor.shape = std::move(shape);
  tensor.dtype = dtype;
  tensor.trainable = trainable;
  return tensor;
}

// Sizes that do not divide, fixed dtypes, frozen tensors, a unit without any tensor and one of a single element, a tie.
Catalog odd_catalog() {
  CatalogBuilder builder("odd", "tensors");
  builder.begin_unit("embed");
  builder.add(tensor_of("embed.weight", {37, 12}));
  builder.begin_unit("one");
  builder.add(tensor_of("one.scale", {}));
  builder.add_run("layers", 0, 3,
                  {tensor_of("weight", {24, 17}), tensor_of("router", {5, 3}, DType::f32),
                   tensor_of("base", {33}, DType::bf16, false), tensor_of("adapter", {2, 9}, DType::f16)});
  builder.begin_unit("nothing");
  builder.begin_unit("wide");
  builder.add(tensor_of("wide.weight", {3000, 3}));
  builder.begin_unit("head");
  builder.add(tensor_of("head.norm", {12}));
  Tensor tied = tensor_of("head.weight", {37, 12});
  tied.tied_to = "embed.weight";
  builder.add(tied);
  return builder.finish();
}

std::vector<Model> models() {
  return {{.catalog = odd_catalog(), .architecture = {}, .modules = {}},
          model_from_hf_config(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 257,
                                   "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
                                   "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": false})",
                               "tiny")};
}

Setup setup_of(int stage, std::uint64_t world) {
  Setup setup;
  setup.stage = stage;
  setup.world_size = world;
  setup.policy = policy_named("bf16-mixed");
  return setup;
}

TEST(SimulatedIsMeasured, EveryStageOnOneToFourRanks) {
  for (const Model& model : models()) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const std::uint64_t world : {1U, 2U, 3U, 4U}) expect_equal(model, setup_of(stage, world));
    }
  }
}

TEST(SimulatedIsMeasured, HybridShardingAccumulationAndRecompute) {
  for (const Model& model : models()) {
    for (int stage = 0; stage <= 3; ++stage) {
      auto setup = setup_of(stage, 4);
      setup.replicate = 2;
      expect_equal(model, setup);
      setup.accumulation = 3;
      expect_equal(model, setup);
      setup.replicate = 1;
      setup.recompute = Recompute::full;
      setup.prefetch = 2;
      expect_equal(model, setup);
    }
  }
}

}  // namespace
}  // namespace shardplan::test
