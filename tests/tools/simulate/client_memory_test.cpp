// The client that virtual ranks book holds, with the arenas, what the planner says of a rank: difference 0. The planner folds equal
// blocks and adds up; the device counts allocations, unit by unit.
#include "tools/simulate/client_memory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "planner/activations/client_memory.h"
#include "planner/formats/cluster_table.h"
#include "planner/formats/gpu_table.h"
#include "planner/formats/presets.h"
#include "tools/simulate/simulation.h"

namespace shardplan {
namespace {

struct Case {
  const char* model;
  int stage = 0;
  std::uint64_t world = 1;
  std::uint64_t sequence = 512;
  RecomputeKind recompute = RecomputeKind::none;
  std::uint64_t every = 1;
  std::uint64_t accumulation = 1;
  Profile profile = Profile::hf_sdpa;
  std::uint64_t micro_batch = 1;
  std::uint64_t images = 1;
  std::uint64_t pixels = 0;  // on a side of each
  const char* precision = "bf16-mixed";
};

Setup setup_of(const Case& c) {
  Setup setup;
  setup.world_size = c.world;
  setup.stage = c.stage;
  setup.accumulation = c.accumulation;
  setup.recompute = c.recompute == RecomputeKind::full ? Recompute::full : Recompute::none;
  setup.policy = policy_named(c.precision);
  return setup;
}

ClientSetup client_of(const Case& c) {
  ClientSetup client;
  client.profile = c.profile;
  client.recompute = c.recompute;
  client.recompute_every = c.every;
  client.micro_batch = c.micro_batch;
  client.sequence = c.sequence;
  client.images = c.images;
  client.image_height = client.image_width = c.pixels;
  return client;
}

SimulationOptions options_of(const Case& c) {
  return {.cluster = require_cluster("h100", gpu_table({})),
          .work = {.tokens = c.micro_batch * c.sequence, .sequence = c.sequence}};
}

// What a plan says: the arena, the client's peak and what libraries keep.
Bytes planned_peak(const Model& model, const StepPlan& plan, const ClientSetup& client,
                   const std::optional<MegatronMachine>& machine) {
  const ClientSide side = client_of_rank(model, model.catalog, plan.setup, client, 0, machine);
  EXPECT_TRUE(side.holds) << side.unknown_because;
  PeakMemory arena;
  arena.workspace = plan.device.bytes;
  DeviceMemory device;
  add_client(device, {.computing = arena, .updating = arena}, side.holds.value());
  return *device.peak_allocated;
}

void expect_planned(const Case& c) {
  SCOPED_TRACE(fmt::format("{} stage {} world {} sequence {} {} A {} {}", c.model, c.stage, c.world, c.sequence,
                           recompute_words(c.recompute, c.every), c.accumulation, name(c.profile)));
  const Model model = preset_model(c.model).value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of(c));
  const MegatronMachine machine;
  const ClientMemory client = client_memory(model, plan.setup, client_of(c), machine);
  SimulationOptions options = options_of(c);
  options.client = &client;
  const Simulation simulation = simulate(model, plan, options);
  const Bytes planned = planned_peak(model, plan, client_of(c), machine);
  EXPECT_GT(planned, plan.device.bytes);
  for (const SimulatedRank& rank : simulation.ranks) {
    ASSERT_EQ(rank.error, "");
    ASSERT_EQ(rank.peak_allocated, planned);
    ASSERT_EQ(rank.arena, plan.device.bytes);  // counted by itself, as without a client
  }
}

TEST(ClientMemory, SimulatedPeakIsThePlannedOne) {
  for (const char* model : {"gpt2", "llama-2-7b", "roberta-base"}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const auto& [recompute, every] : {std::pair{RecomputeKind::none, 1U},
                                             {RecomputeKind::full, 1U},
                                             {RecomputeKind::every, 2U},
                                             {RecomputeKind::every, 5U}}) {
        expect_planned({model, stage, 2, 512, recompute, every});
      }
    }
  }
}

TEST(ClientMemory, AndInOtherSetups) {
  for (const Profile profile : {Profile::hf_eager, Profile::hf_sdpa}) {
    for (const std::uint64_t sequence : {1U, 63U, 300U}) {
      expect_planned({"gpt2", 3, 4, sequence, RecomputeKind::none, 1, 3, profile, 3});
      expect_planned({"llama-2-7b", 1, 3, sequence, RecomputeKind::full, 1, 2, profile, 2});
    }
  }
  // An encoder beside a decoder, heads that are tied and not, no tokens at all.
  for (const char* model :
       {"t5-small", "pythia-160m", "distilbert-base-uncased", "smollm-360m", "vit-base-patch16-224"}) {
    for (const RecomputeKind recompute : {RecomputeKind::none, RecomputeKind::full}) {
      expect_planned({model, 3, 2, 384, recompute});
    }
  }
  expect_planned({"qwen2.5-vl-3b", 3, 2, 600, RecomputeKind::none, 1, 1, Profile::hf_sdpa, 1, 2, 280});
  expect_planned({"qwen2-vl-2b", 1, 2, 600, RecomputeKind::full, 1, 2, Profile::hf_eager, 2, 1, 336});
  // Images before texts, or none.
  for (const char* model : {"gemma-3-4b", "llava-1.5-7b", "llama-4-scout-17b-16e"}) {
    for (const std::uint64_t images : {0U, 1U, 2U}) {
      expect_planned({model, 3, 2, 1200, RecomputeKind::none, 1, 1, Profile::hf_sdpa, 1, images});
      expect_planned({model, 1, 2, 1200, RecomputeKind::full, 1, 2, Profile::hf_eager, 2, images});
    }
  }
  // A graph that goes in the forward; latents and their condition; copies of autocast, of which a folded block has many.
  for (const RecomputeKind recompute : {RecomputeKind::none, RecomputeKind::full}) {
    expect_planned({"chameleon-7b", 3, 2, 1280, recompute});
    expect_planned({"dit-s-2", 2, 3, 0, recompute, 1, 2, Profile::hf_eager, 3});
    for (const char* model : {"gpt2", "llama-2-7b", "dit-s-2"}) {
      expect_planned({model, 3, 2, 384, recompute, 1, 1, Profile::hf_sdpa, 2, 1, 0, "amp-bf16"});
    }
  }
  expect_planned({"llama-2-7b", 2, 8, 1024, RecomputeKind::none, 1, 1, Profile::megatron});
  expect_planned({"llama-2-7b", 0, 1, 1024, RecomputeKind::full, 1, 2, Profile::megatron});
}

// Each micro-batch gives back all that it took, so a step leaves the arenas and what libraries keep.
TEST(ClientMemory, LeavesNothingBehind) {
  const Case c{"gpt2", 0, 1};
  const Model model = preset_model(c.model).value();
  const ClientMemory memory = client_memory(model, setup_of(c), client_of(c), {});
  std::vector<int> held(memory.blocks.size());
  const auto pass = [&](const ClientPass& of_unit) {
    for (const std::uint32_t block : of_unit.freed) EXPECT_EQ(held[block]--, 1);
    for (const std::uint32_t block : of_unit.held) EXPECT_EQ(held[block]++, 0);
  };
  for (const ClientPass& of_unit : memory.forward) pass(of_unit);
  EXPECT_GT(std::count(held.begin(), held.end(), 1), 12);
  for (std::size_t unit = memory.backward.size(); unit-- > 0;) pass(memory.backward[unit]);
  EXPECT_EQ(std::count(held.begin(), held.end(), 0), static_cast<std::ptrdiff_t>(held.size()));
}

// A GPU that has room for the arena and not for the tensors runs out where they are, and says so to the others.
TEST(ClientMemory, ADeviceThatIsTooSmallFailsInAPass) {
  const Case c{"gpt2", 3, 4};
  const Model model = preset_model(c.model).value();
  const StepPlan plan = make_step_plan(model.catalog, setup_of(c));
  const ClientMemory client = client_memory(model, plan.setup, client_of(c), {});
  SimulationOptions options = options_of(c);
  options.client = &client;
  const Bytes planned = planned_peak(model, plan, client_of(c), {});
  const auto on_device_of = [&](Bytes bytes) {
    options.faults = {{.kind = FaultKind::out_of_memory, .rank = 1, .bytes = bytes}};
    return simulate(model, plan, options);
  };
  EXPECT_EQ(on_device_of(planned).ranks[1].error, "");
  const Simulation small = on_device_of(planned - Bytes{1});
  EXPECT_NE(small.ranks[1].error.find("out of device memory"), std::string::npos) << small.ranks[1].error;
  EXPECT_EQ(small.ranks[1].arena, plan.device.bytes);
  EXPECT_NE(small.ranks[0].error.find("rank 1"), std::string::npos) << small.ranks[0].error;
}

}  // namespace
}  // namespace shardplan
