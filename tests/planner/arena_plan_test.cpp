#include "planner/arena_plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/error.h"
#include "planner/alignment.h"
#include "tests/support/catalogs.h"
#include "tests/support/leases.h"
#include "tests/support/plan_walk.h"
#include "tests/support/property.h"
#include "tests/support/whole_grid.h"

namespace shardplan {
namespace {

using namespace test_support;  // NOLINT(google-build-using-namespace)

constexpr BufferRole kStateRoles[] = {BufferRole::parameter, BufferRole::gradient,     BufferRole::accumulator,
                                      BufferRole::master,    BufferRole::first_moment, BufferRole::second_moment,
                                      BufferRole::ema};

bool is_power_of_two(std::uint64_t value) {
  return (value & (value - 1)) == 0;
}

// What is wrong with the leases of any program: bytes that meet, or a peak that is not the plan's.
std::string arena_problem(const StepPlan& plan, const ModelFacts& facts) {
  LivePeak peak{plan.device.resident, 0};
  Bytes furthest = furthest_array(plan);
  for (const ProgramKind kind :
       {ProgramKind::last_micro_batch, ProgramKind::train_micro_batch, ProgramKind::evaluate}) {
    if (kind == ProgramKind::train_micro_batch && plan.setup.accumulation == 1) continue;
    const Walk walk = walk_program(plan, facts, kind);
    if (!walk.problem.empty()) return walk.problem;
    if (const std::string problem = lease_problem(plan, walk); !problem.empty()) return problem;
    const LivePeak program_peak = lease_peak(plan, walk);
    if (program_peak.bytes > peak.bytes) peak = program_peak;
    furthest = std::max(furthest, furthest_lease(plan, walk));
  }
  if (kArenaBaseShift + furthest != plan.device.bytes) {
    return fmt::format("the furthest range ends at {} B, and the plan asks for {} B and the shift", furthest.count(),
                       (plan.device.bytes - kArenaBaseShift).count());
  }
  // A plan hands a ring's slots on without a gap, a walk does not within a step: moments agree to the step.
  if (peak.bytes != plan.device.live_peak || peak.moment / 4 != plan.device.peak_moment / 4) {
    return fmt::format("the live peak is {} B at moment {}, and the plan says {} B at {}", peak.bytes.count(),
                       peak.moment, plan.device.live_peak.count(), plan.device.peak_moment);
  }
  return "";
}

// Elements and dtype of a resident buffer, from the comments of BufferRole.
struct Resident {
  DType dtype = DType::f32;
  std::uint64_t elements = 0;
};

std::optional<Resident> expected_resident(const ModelFacts& facts, BufferRole role, const BufferFacts& buffer) {
  const Setup& setup = facts.setup;
  const auto from_stage = [&](int stage, DType dtype) {
    return Resident{dtype, setup.stage >= stage ? buffer.shard : buffer.padded};
  };
  if (role == BufferRole::parameter) return from_stage(3, buffer.policy.parameter);
  if (!buffer.trainable) return std::nullopt;
  const bool first = setup.optimizer != OptimizerKind::sgd;
  const bool second = setup.optimizer == OptimizerKind::adamw || setup.optimizer == OptimizerKind::adam;
  switch (role) {
    case BufferRole::gradient:
      return from_stage(2, buffer.policy.gradient);
    case BufferRole::accumulator:
      if (setup.accumulation == 1 || buffer.policy.gradient_accumulator == buffer.policy.gradient) return std::nullopt;
      return Resident{buffer.policy.gradient_accumulator, facts.adds_locally ? buffer.padded : buffer.shard};
    case BufferRole::master:
      return buffer.policy.master ? std::optional(from_stage(1, *buffer.policy.master)) : std::nullopt;
    case BufferRole::first_moment:
      return first ? std::optional(from_stage(1, buffer.policy.first_moment)) : std::nullopt;
    case BufferRole::second_moment:
      return second ? std::optional(from_stage(1, buffer.policy.second_moment)) : std::nullopt;
    case BufferRole::ema:
      return setup.ema ? std::optional(from_stage(1, DType::f32)) : std::nullopt;
    default:
      return std::nullopt;
  }
}

Bytes resident_of(const StepPlan& plan, MemoryClass memory_class) {
  Bytes total;
  for (const Array& array : plan.device.arrays) {
    if (class_of(array.role) == memory_class) total += array.count * array.bytes;
  }
  return total;
}

StepPlan plan_of(const Catalog& catalog, int stage, std::uint64_t world, const char* policy = "bf16-mixed") {
  shardplan::Setup setup;
  setup.stage = stage;
  setup.world_size = world;
  setup.policy = policy_named(policy);
  return make_step_plan(catalog, setup);
}

TEST(ArenaPlan, LiveRangesNeverMeetAndTheirPeakIsThePlans) {
  check_property(2000, [] {
    const Catalog catalog = *any_catalog();
    const shardplan::Setup setup = *any_setup();
    RC_ASSERT(arena_problem(make_step_plan(catalog, setup), facts_of(catalog, setup)) == "");
  });
}

TEST(ArenaPlan, LiveRangesOfKnownModelsNeverMeet) {
  for (const Catalog& catalog : known_catalogs()) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const std::uint64_t prefetch : {0U, 1U, 2U, 3U}) {
        shardplan::Setup setup;
        setup.world_size = 16;
        setup.replicate = prefetch % 2 + 1;
        setup.stage = stage;
        setup.prefetch = prefetch;
        setup.accumulation = 1 + static_cast<std::uint64_t>(stage) % 2;
        EXPECT_EQ(arena_problem(make_step_plan(catalog, setup), facts_of(catalog, setup)), "")
            << catalog.name << ", stage " << stage << ", prefetch " << prefetch;
      }
    }
  }
}

TEST(ArenaPlan, EveryResidentBufferIsWhereResidentRangeSays) {
  check_property(700, [] {
    const Catalog catalog = *any_catalog();
    const shardplan::Setup setup = *any_setup();
    const StepPlan plan = make_step_plan(catalog, setup);
    const ModelFacts facts = facts_of(catalog, setup);
    std::map<Bytes, Bytes> taken;  // offset -> end
    Bytes sum;
    const auto take = [&](ByteRange range) {
      RC_ASSERT(range.offset.count() % alignment_of(range.bytes).count() == 0U);
      sum += range.bytes;
      if (range.bytes > Bytes{}) RC_ASSERT(taken.emplace(range.offset, range.offset + range.bytes).second);
    };
    for (std::uint64_t unit = 0; unit < facts.units.size(); ++unit) {
      for (std::size_t i = 0; i < facts.units[unit].buffers.size(); ++i) {
        for (const BufferRole role : kStateRoles) {
          const auto expected = expected_resident(facts, role, facts.units[unit].buffers[i]);
          const auto range = resident_range(plan, role, unit, i);
          RC_ASSERT(range.has_value() == expected.has_value());
          if (!range) continue;
          RC_ASSERT(range->bytes.count() == bytes_for(expected->dtype, expected->elements).count());
          take(*range);
        }
      }
    }
    for (const Array& array : plan.device.arrays) {
      if (class_of(array.role) == MemoryClass::communication_buffers) take({array.offset, array.bytes});
    }
    RC_ASSERT(sum.count() == plan.device.resident.count());
    Bytes end;
    for (const auto& [offset, its_end] : taken) {
      RC_ASSERT(offset >= end);
      end = its_end;
    }
    RC_ASSERT(end <= plan.device.bytes - kArenaBaseShift);
  });
}

TEST(ArenaPlan, BuffersOfASlotFollowEachOtherAligned) {
  check_property(700, [] {
    const Catalog catalog = *any_catalog();
    const shardplan::Setup setup = *any_setup();
    const StepPlan plan = make_step_plan(catalog, setup);
    const ModelFacts facts = facts_of(catalog, setup);
    for (const Slot& slot : plan.device.slots) {
      const std::vector<BufferFacts>& buffers = facts.units[slot.first_unit].buffers;
      Bytes end;
      for (std::size_t i = 0; i < buffers.size(); ++i) {
        const BufferFacts& buffer = buffers[i];
        const ByteRange range = buffer_in_slot(plan, slot.role, slot.first_unit, i);
        Bytes expected;
        if (slot.role == BufferRole::gathered_parameter) expected = bytes_for(buffer.policy.parameter, buffer.padded);
        if (slot.role == BufferRole::partial && buffer.trainable) expected = bytes_for(DType::f32, buffer.shard);
        if (slot.role == BufferRole::contribution && buffer.has_contribution_slot) {
          expected = bytes_for(buffer.policy.wire, buffer.padded);
        }
        RC_ASSERT(range.bytes.count() == expected.count());
        RC_ASSERT(range.offset >= end);
        RC_ASSERT((slot.offset + range.offset).count() % alignment_of(range.bytes).count() == 0U);
        end = range.offset + range.bytes;
      }
      RC_ASSERT(end <= slot.bytes);
    }
  });
}

TEST(ArenaPlan, GatheredBytesAreThoseOfAllShards) {
  check_property(500, [] {
    const Catalog catalog = *any_catalog();
    shardplan::Setup setup = *any_setup();
    setup.stage = 3;
    const ModelFacts facts = facts_of(catalog, setup);
    for (const UnitFacts& unit : facts.units) {
      for (const BufferFacts& buffer : unit.buffers) {
        RC_ASSERT(bytes_for(buffer.policy.parameter, buffer.padded).count() ==
                  (facts.shards * bytes_for(buffer.policy.parameter, buffer.shard)).count());
      }
    }
  });
}

TEST(ArenaPlan, UnknownBuffersHaveNoRange) {
  const StepPlan plan = plan_of(uniform_catalog(4, 1 << 20), 2, 4);
  EXPECT_EQ(resident_range(plan, BufferRole::ema, 0), std::nullopt);
  EXPECT_EQ(resident_range(plan, BufferRole::parameter, 0, 1), std::nullopt);
  EXPECT_EQ(slot_range(plan, BufferRole::gathered_parameter, 0, 0), std::nullopt);
  EXPECT_EQ(slot_range(plan, BufferRole::contribution, 0, 0), std::nullopt);  // forward has no gradient
  EXPECT_EQ(slot_range(plan, BufferRole::contribution, 5, 3), std::nullopt);  // unit 2's step
  EXPECT_NE(slot_range(plan, BufferRole::contribution, 5, 2), std::nullopt);
  EXPECT_THROW((void)resident_range(plan, BufferRole::parameter, 4), CheckFailure);
  EXPECT_THROW((void)buffer_in_slot(plan, BufferRole::contribution, 0, 1), CheckFailure);
}

// Arrays of one unit would meet in the same cache sets if they started at equal places modulo 32 KiB.
TEST(ArenaPlan, ArraysOfOneUnitStartAtDifferentPlaces) {
  check_property(200, [] {
    const std::uint64_t units = *rc::gen::inRange<std::uint64_t>(1, 9);
    const std::uint64_t elements = 1ULL << *rc::gen::inRange(20, 33);
    shardplan::Setup setup = *any_setup();
    setup.world_size = 1ULL << *rc::gen::inRange(0, 6);
    setup.replicate = 1;
    const StepPlan plan = make_step_plan(uniform_catalog(units, elements), setup);
    for (std::uint64_t unit = 0; unit < units; ++unit) {
      std::set<std::uint64_t> places;
      for (const BufferRole role : kStateRoles) {
        const auto range = resident_range(plan, role, unit);
        if (!range) continue;
        RC_ASSERT(is_power_of_two(range->bytes.count()));
        RC_ASSERT(places.insert(range->offset.count() % (8 * kShiftUnit.count())).second);
      }
    }
  });
}

TEST(ArenaPlan, EveryKindOfArrayStartsAtItsOwnShift) {
  shardplan::Setup setup;
  setup.ema = true;
  setup.accumulation = 2;
  setup.world_size = 4;
  setup.transport = Transport::staged;
  const StepPlan plan = make_step_plan(known_catalogs().front(), setup);
  std::map<BufferRole, Bytes> first;
  for (const Array& array : plan.device.arrays) first.emplace(array.role, array.offset);
  std::uint64_t kind = 0;
  for (const BufferRole role : {BufferRole::parameter, BufferRole::gradient, BufferRole::accumulator,
                                BufferRole::master, BufferRole::first_moment, BufferRole::second_moment,
                                BufferRole::ema, BufferRole::control, BufferRole::staging}) {
    ASSERT_TRUE(first.contains(role)) << name(role);
    EXPECT_EQ(first[role].count() % (8 * kShiftUnit.count()), kind % 8 * kShiftUnit.count()) << name(role);
    ++kind;
  }
}

// 2 % of what lives at the peak is the most that alignment, shifts and gaps may cost.
void expect_small_loss(const Catalog& catalog, const Setup& setup) {
  const StepPlan plan = make_step_plan(catalog, setup);
  const Bytes loss = plan.device.bytes - plan.device.live_peak;
  EXPECT_LE(loss * 50, plan.device.live_peak)
      << catalog.name << ", stage " << setup.stage << ", world " << setup.world_size << ", replicate "
      << setup.replicate << ", prefetch " << setup.prefetch << ", A " << setup.accumulation << ", " << setup.policy.name
      << ": " << loss.count() << " of " << plan.device.live_peak.count();
}

// Every 7th combination; all of them with SHARDPLAN_TEST_ALL=1.
TEST(ArenaPlan, PackingLossOfKnownModelsIsAtMostTwoPercent) {
  const bool all = test_support::whole_grid();
  std::vector<std::uint64_t> worlds{1000, 4096};
  for (std::uint64_t world = 1; world <= 64; ++world) worlds.push_back(world);
  std::uint64_t index = 0;
  for (const Catalog& catalog : known_catalogs()) {
    for (const std::uint64_t world : worlds) {
      for (std::uint64_t choice = 0; choice < 128; ++choice) {
        if (!all && index++ % 7 != 0) continue;
        shardplan::Setup setup;
        setup.world_size = world;
        setup.stage = static_cast<int>(choice % 4);
        setup.prefetch = choice / 4 % 4;
        setup.replicate = choice / 16 % 2 + 1;
        setup.accumulation = choice / 32 % 2 == 0 ? 1 : 4;
        setup.policy = policy_named(choice / 64 == 0 ? "bf16-mixed" : "fp32");
        if (world % setup.replicate == 0) expect_small_loss(catalog, setup);
      }
    }
  }
}

// From the table in planner/policy.cpp: parameter + gradient + optimizer states with AdamW.
TEST(Memory, BytesPerParameterAreThoseOfThePolicies) {
  struct Row {
    const char* policy;
    std::uint64_t parameter, gradient, states;
  };
  const Catalog catalog = uniform_catalog(8, 1ULL << 24);
  const std::uint64_t psi = 8ULL << 24;
  for (const Row& row : {Row{"fp32", 4, 4, 8}, Row{"fp16-mixed", 2, 2, 12}, Row{"bf16-mixed", 2, 2, 12},
                         Row{"bf16-mixed-fp32grad", 2, 4, 12}, Row{"bf16", 2, 2, 4}, Row{"bf16-fp32state", 2, 2, 8}}) {
    for (const std::uint64_t world : {1U, 4U, 64U}) {
      for (int stage = 0; stage <= 3; ++stage) {
        const StepPlan plan = plan_of(catalog, stage, world, row.policy);
        const auto shard = [&](int from) { return psi / (stage >= from ? world : 1); };
        EXPECT_EQ(resident_of(plan, MemoryClass::parameters).count(), row.parameter * shard(3)) << row.policy;
        EXPECT_EQ(resident_of(plan, MemoryClass::gradients).count(), row.gradient * shard(2)) << row.policy;
        EXPECT_EQ(resident_of(plan, MemoryClass::optimizer_states).count(), row.states * shard(1)) << row.policy;
        EXPECT_EQ(resident_of(plan, MemoryClass::communication_buffers).count(), 64 * world);
      }
    }
  }
}

TEST(Memory, AHigherStageNeverKeepsMore) {
  check_property(500, [] {
    const Catalog catalog = *any_catalog();
    shardplan::Setup setup = *any_setup();
    Bytes before{UINT64_MAX};
    for (setup.stage = 0; setup.stage <= 3; ++setup.stage) {
      const Bytes resident = make_step_plan(catalog, setup).device.resident;
      RC_ASSERT(resident <= before);
      before = resident;
    }
  });
}

TEST(Memory, OneRankKeepsTheSameAtEveryStage) {
  check_property(300, [] {
    const Catalog catalog = *any_catalog();
    shardplan::Setup setup = *any_setup();
    setup.world_size = setup.replicate;
    setup.cadence = Cadence::micro_batch;
    setup.stage = 0;
    const StepPlan replicated = make_step_plan(catalog, setup);
    for (setup.stage = 1; setup.stage <= 3; ++setup.stage) {
      const StepPlan plan = make_step_plan(catalog, setup);
      RC_ASSERT(plan.device == replicated.device);
      RC_ASSERT(plan.programs == replicated.programs);
    }
  });
}

TEST(Memory, UnfoldedUnitsKeepTheSameBytes) {
  check_property(500, [] {
    const Catalog catalog = *any_catalog();
    const shardplan::Setup setup = *any_setup();
    const StepPlan folded = make_step_plan(catalog, setup);
    const StepPlan expanded = make_step_plan(unfolded(catalog), setup);
    RC_ASSERT(folded.device.resident.count() == expanded.device.resident.count());
    RC_ASSERT(folded.device.live_peak.count() == expanded.device.live_peak.count());
    RC_ASSERT(folded.device.peak_moment / 4 == expanded.device.peak_moment / 4);
  });
}

}  // namespace
}  // namespace shardplan
