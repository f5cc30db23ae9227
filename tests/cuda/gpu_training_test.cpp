// NCCL against the contract, and whole steps with arenas on GPUs against the reference: one rank on the first GPU, and as
// many as there are GPUs.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "tests/cuda/gpu.h"
#include "tests/support/device_client.h"
#include "tests/support/reference_reduction.h"
#include "tests/support/run_ranks.h"

namespace shardplan::test {
namespace {

using namespace std::chrono_literals;

class NcclTest : public GpuTest {
 protected:
  // body(communicator, device) for each of `ranks` ranks, on a GPU and a thread of its own.
  template <typename Body>
  void on_gpus(int ranks, bool fast, Body body) {
    run_ranks(ranks, [&](Communicator& local) {
      const auto device = cuda_->make_device(local.rank());
      const auto world = cuda_->make_communicator(
          local.rank(), {.rank = local.rank(),
                         .size = ranks,
                         .deadline = 20s,
                         .fast = fast,
                         .fast_buffer = 4_KiB,
                         .all_gather = [&](std::span<const std::byte> mine, std::span<std::byte> all) {
                           local.all_gather_bytes(mine, all);
                         }});
      body(*world, *device);
    });
  }
  std::vector<int> worlds() const {
    std::vector<int> found{1};
    if (gpus_.size() > 1) found.push_back(static_cast<int>(std::min<std::size_t>(gpus_.size(), 8)));
    return found;
  }
};

// A buffer of contributions, a staging and an output in one arena; the pieces are equal ones, or not.
void expect_reduction(Communicator& world, Device& device, DType wire, std::uint64_t elements, bool fast) {
  const auto ranks = static_cast<std::uint64_t>(world.size());
  const auto rank = static_cast<std::uint64_t>(world.rank());
  const std::uint64_t each = elements / ranks;
  const Piece mine{rank * each, rank + 1 == ranks ? elements - rank * each : each};
  const std::uint64_t width = bits(wire) / 8;
  const auto arena = world.make_arena(device, {.bytes = 4_MiB});
  const Lease input = arena->take(0, Bytes{1 << 20});
  const Lease staging = arena->take(1 << 20, Bytes{4096});
  const Lease output = arena->take(2 << 20, Bytes{1 << 20});
  std::vector<std::byte> bytes(elements * width);
  for (std::uint64_t i = 0; i < elements; ++i) store(wire, contribution(world.rank(), i), bytes.data() + i * width);
  const auto stream = device.make_stream();
  stream->copy(input.data(), bytes.data(), Bytes{bytes.size()});
  world.reduce_scatter({.wire = wire,
                        .input = {arena.get(), 0},
                        .elements = elements,
                        .mine = mine,
                        .scale = 1.0F / 3.0F,
                        .output = {.dtype = DType::f32, .place = {arena.get(), 2 << 20}},
                        .staging = {arena.get(), 1 << 20},
                        .staging_bytes = 4096},
                       *stream);
  std::vector<float> got(mine.count);
  stream->copy(reinterpret_cast<std::byte*>(got.data()), output.data(), Bytes{got.size() * 4});
  // And all of it back to everyone, in the place of the contributions.
  const Lease whole = arena->take(3 << 20, Bytes{(1 << 20) - 65536});
  world.all_gather({.dtype = DType::f32,
                    .input = {arena.get(), 2 << 20},
                    .output = {arena.get(), 3 << 20},
                    .elements = elements,
                    .mine = mine},
                   *stream);
  std::vector<float> all(elements);
  stream->copy(reinterpret_cast<std::byte*>(all.data()), whole.data(), Bytes{all.size() * 4});
  stream->synchronize();
  world.barrier();
  for (std::uint64_t i = 0; i < elements; ++i) {
    std::vector<float> values(ranks);
    for (std::uint64_t r = 0; r < ranks; ++r) {
      std::byte stored[4];
      store(wire, contribution(static_cast<int>(r), i), stored);
      values[r] = load(wire, stored);
    }
    const float expected = reduce_in_tree_order(values, 0, 1.0F / 3.0F);
    const float tolerance = !fast || ranks == 1 ? 0.0F : (wire == DType::f32 ? 1e-5F : 5e-2F);
    ASSERT_NEAR(all[i], expected, tolerance * (std::abs(expected) + 1.0F)) << "element " << i;
    if (i >= mine.first && i < mine.first + mine.count) {
      ASSERT_EQ(got[i - mine.first], all[i]);
    }
  }
}

TEST_F(NcclTest, ReducesAndGathers) {
  for (const int ranks : worlds()) {
    for (const bool fast : {false, true}) {
      on_gpus(ranks, fast, [&](Communicator& world, Device& device) {
        for (const DType wire : {DType::f32, DType::bf16, DType::f16}) {
          for (const std::uint64_t elements : {0U, 1U, 8U, 1000U, 4096U, 100'003U}) {
            SCOPED_TRACE(fmt::format("{} ranks, {}, {} elements, fast {}", ranks, name(wire), elements, fast));
            expect_reduction(world, device, wire, elements, fast);
          }
        }
      });
    }
  }
}

TEST_F(NcclTest, ExchangesRecordsAndSplits) {
  for (const int ranks : worlds()) {
    on_gpus(ranks, false, [&](Communicator& world, Device&) {
      for (const std::size_t bytes : {1U, 64U, 192U, 193U, 50'000U}) {
        std::vector<std::byte> mine(bytes);
        for (std::size_t i = 0; i < bytes; ++i)
          mine[i] = static_cast<std::byte>(i * 7 + static_cast<std::size_t>(world.rank()));
        std::vector<std::byte> all(bytes * static_cast<std::size_t>(ranks));
        world.all_gather_bytes(mine, all);
        for (std::size_t i = 0; i < all.size(); ++i) {
          ASSERT_EQ(all[i], static_cast<std::byte>(i % bytes * 7 + i / bytes)) << bytes << " bytes, byte " << i;
        }
      }
      const auto reversed = world.split(0, -world.rank());
      EXPECT_EQ(reversed->rank(), ranks - 1 - world.rank());
      EXPECT_EQ(reversed->world_rank(), world.rank());
      reversed->barrier();
      EXPECT_EQ(world.split(-1, 0), nullptr);
      world.barrier();
    });
  }
}

TEST_F(NcclTest, StaysPoisonedAfterAnAbort) {
  on_gpus(1, false, [&](Communicator& world, Device& device) {
    const auto part = world.split(0, 0);
    world.abort("for a test");
    for (Communicator* poisoned : {&world, part.get()}) {
      try {
        poisoned->barrier();
        ADD_FAILURE();
      } catch (const CommunicationError& error) {
        EXPECT_EQ(error.rank(), 0);
        EXPECT_NE(std::string(error.what()).find("for a test"), std::string::npos) << error.what();
      }
    }
    EXPECT_THROW(world.make_arena(device, {.bytes = 1_MiB}), CommunicationError);
  });
}

TEST_F(NcclTest, AnArenaThatDoesNotFitIsOutOfMemory) {
  on_gpus(1, false, [&](Communicator& world, Device& device) {
    EXPECT_THROW(world.make_arena(device, {.bytes = Bytes{std::uint64_t{1} << 50}}), OutOfMemory);
  });
}

TEST_F(NcclTest, WholeStepsEqualTheReference) {
  const Catalog catalog = odd_catalog();
  for (const int ranks : worlds()) {
    for (const char* precision : {"fp32", "bf16-mixed", "fp16-mixed"}) {
      for (int stage = 0; stage < 4; ++stage) {
        shardplan::Setup setup;
        setup.policy = policy_named(precision);
        setup.world_size = static_cast<std::uint64_t>(ranks);
        setup.transport = Transport::staged;
        setup.stage = stage;
        setup.accumulation = 2;
        setup.cadence = Cadence::micro_batch;
        const Script script{.seed = 11, .micro_batches = {2, 1, 2}, .poisons = {}, .silent_unit = 3};
        ZeroOptions options;
        options.clip_norm = 0.5;
        options.initial_values = synthetic_values;
        const Trained expected = run_reference(catalog, setup, options, script);
        options.kernels = &cuda_->kernels();
        const StepPlan plan = make_step_plan(catalog, setup);
        on_gpus(ranks, false, [&](Communicator& world, Device& device) {
          RecordingDevice recording(device);
          ZeroOptimizer optimizer(catalog, plan, recording, {&world, &world}, options);
          EXPECT_EQ(difference(run_on_device(optimizer, script, plan, world.rank()), expected), "")
              << precision << ", stage " << stage;
          EXPECT_EQ(recording.report(MemoryTier::device).held, plan.device.bytes);
          EXPECT_EQ(recording.report(MemoryTier::device).high_water, plan.device.bytes);
        });
      }
    }
  }
}

}  // namespace
}  // namespace shardplan::test
