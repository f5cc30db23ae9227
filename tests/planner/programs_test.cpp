#include "planner/programs.h"

#include <gtest/gtest.h>

#include "tests/support/catalogs.h"
#include "tests/support/plan_walk.h"
#include "tests/support/property.h"

namespace shardplan {
namespace {

using namespace test_support;  // NOLINT(google-build-using-namespace)

constexpr ProgramKind kMicroBatchPrograms[] = {ProgramKind::train_micro_batch, ProgramKind::last_micro_batch,
                                               ProgramKind::evaluate};

const Program& program_of(const StepPlan& plan, ProgramKind kind) {
  return plan.programs[static_cast<std::size_t>(kind)];
}

bool is_planned(const StepPlan& plan, ProgramKind kind) {
  return kind != ProgramKind::train_micro_batch || plan.setup.accumulation > 1;
}

std::vector<Operation> operations_of(const StepPlan& plan, ProgramKind kind) {
  std::vector<Operation> operations;
  for_each_operation(program_of(plan, kind), [&](const Operation& operation) { operations.push_back(operation); });
  return operations;
}

std::uint64_t count_of(const StepPlan& plan, ProgramKind program, OperationKind kind) {
  std::uint64_t count = 0;
  for (const Operation& operation : operations_of(plan, program)) count += operation.kind == kind ? 1U : 0U;
  return count;
}

// The first thing that is wrong with any program of a plan.
std::string plan_problem(const StepPlan& plan, const ModelFacts& facts) {
  for (const ProgramKind kind : kMicroBatchPrograms) {
    if (!is_planned(plan, kind)) {
      if (!program_of(plan, kind).segments.empty()) return "a program without a use is not empty";
      continue;
    }
    const Walk walk = walk_program(plan, facts, kind);
    if (!walk.problem.empty()) return walk.problem;
    if (const std::string problem = dependency_problem(walk.operations); !problem.empty()) return problem;
  }
  return update_problem(plan, facts);
}

TEST(Programs, EveryOperationFindsWhatItNeeds) {
  check_property(1500, [] {
    const Catalog catalog = *any_catalog();
    const shardplan::Setup setup = *any_setup();
    RC_ASSERT(plan_problem(make_step_plan(catalog, setup), facts_of(catalog, setup)) == "");
  });
}

TEST(Programs, OfKnownModelsFindWhatTheyNeed) {
  for (const Catalog& catalog : known_catalogs()) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const std::uint64_t prefetch : {0U, 1U, 3U}) {
        shardplan::Setup setup;
        setup.world_size = 8;
        setup.replicate = 2;
        setup.stage = stage;
        setup.prefetch = prefetch;
        setup.accumulation = 2;
        EXPECT_EQ(plan_problem(make_step_plan(catalog, setup), facts_of(catalog, setup)), "")
            << catalog.name << ", stage " << stage << ", prefetch " << prefetch;
      }
    }
  }
}

TEST(Programs, FoldedExpandToWhatUnfoldedUnitsGive) {
  check_property(700, [] {
    const Catalog catalog = *any_catalog();
    const shardplan::Setup setup = *any_setup();
    const StepPlan folded = make_step_plan(catalog, setup);
    const StepPlan expanded = make_step_plan(unfolded(catalog), setup);
    for (std::size_t kind = 0; kind < kPrograms; ++kind) {
      const std::vector<Operation> a = operations_of(folded, ProgramKind{static_cast<std::uint8_t>(kind)});
      const std::vector<Operation> b = operations_of(expanded, ProgramKind{static_cast<std::uint8_t>(kind)});
      RC_ASSERT(a.size() == b.size());
      for (std::size_t i = 0; i < a.size(); ++i) RC_ASSERT(a[i] == b[i]);
      RC_ASSERT(operation_count(folded.programs[kind]) == a.size());
    }
  });
}

TEST(Programs, SendTheBytesOfTheClosedForms) {
  check_property(1000, [] {
    const Catalog catalog = *any_catalog();
    const shardplan::Setup setup = *any_setup();
    const StepPlan plan = make_step_plan(catalog, setup);
    RC_ASSERT(sent_in_step(plan).count() == expected_sent_in_step(facts_of(catalog, setup)).count());
  });
}

// Rajbhandari et al., ZeRO, arXiv 1910.02054, sec. 7: 2 psi elements for stages 0 to 2, 3 psi for stage 3, each
// (N-1)/N of it. 32 blocks of 2^24 elements divide evenly into any power of two of shards.
TEST(Programs, SendWhatZeroPredictsWithoutPadding) {
  const Catalog catalog = uniform_catalog(32, 1ULL << 24);
  const std::uint64_t psi = 32ULL << 24;
  for (const std::uint64_t world : {1U, 2U, 8U, 64U, 1024U}) {
    for (int stage = 0; stage <= 3; ++stage) {
      shardplan::Setup setup;
      setup.world_size = world;
      setup.stage = stage;
      const std::uint64_t elements = (stage == 3 ? 3 : 2) * (psi / world) * (world - 1);
      EXPECT_EQ(sent_in_step(make_step_plan(catalog, setup)), bytes_for(DType::bf16, elements))
          << "stage " << stage << ", world " << world;
    }
  }
}

TEST(Programs, AccumulationAtCadenceStepReducesOnce) {
  shardplan::Setup setup;
  setup.world_size = 4;
  setup.accumulation = 4;
  const StepPlan by_step = make_step_plan(uniform_catalog(6, 1 << 20), setup);
  EXPECT_EQ(count_of(by_step, ProgramKind::train_micro_batch, OperationKind::reduce), 0U);
  EXPECT_EQ(count_of(by_step, ProgramKind::train_micro_batch, OperationKind::accumulate), 6U);
  EXPECT_EQ(count_of(by_step, ProgramKind::last_micro_batch, OperationKind::reduce), 6U);
  EXPECT_EQ(count_of(by_step, ProgramKind::last_micro_batch, OperationKind::accumulate), 6U);

  setup.cadence = Cadence::micro_batch;
  const StepPlan by_micro_batch = make_step_plan(uniform_catalog(6, 1 << 20), setup);
  EXPECT_EQ(count_of(by_micro_batch, ProgramKind::train_micro_batch, OperationKind::reduce), 6U);
  EXPECT_EQ(count_of(by_micro_batch, ProgramKind::train_micro_batch, OperationKind::accumulate), 0U);
}

TEST(Programs, FrozenUnitsHaveNoGradientOperations) {
  Catalog catalog = uniform_catalog(4, 1 << 20);
  freeze(catalog, "*");
  shardplan::Setup setup;
  setup.world_size = 4;
  for (int stage = 0; stage <= 3; ++stage) {
    setup.stage = stage;
    const StepPlan plan = make_step_plan(catalog, setup);
    EXPECT_EQ(count_of(plan, ProgramKind::last_micro_batch, OperationKind::reduce), 0U);
    const std::vector<Operation> update = operations_of(plan, ProgramKind::update);
    ASSERT_EQ(update.size(), 1U);
    EXPECT_EQ(update.front().kind, OperationKind::agree);
  }
}

TEST(Programs, TiedHeadIsGatheredWithItsOwner) {
  shardplan::Setup setup;
  setup.world_size = 8;
  setup.stage = 3;
  const Catalog tied = known_catalogs()[7];
  ASSERT_EQ(tied.name, "llama-3.2-3b");
  const StepPlan plan = make_step_plan(tied, setup);
  std::uint64_t gathers_of_embedding = 0;
  for (const Operation& operation : operations_of(plan, ProgramKind::last_micro_batch)) {
    gathers_of_embedding += operation.kind == OperationKind::gather && operation.unit == 0 ? 1U : 0U;
  }
  EXPECT_EQ(gathers_of_embedding, 4U);  // forward, head's forward, head's backward, backward
}

TEST(Programs, AreAsLongForAThousandBlocksAsForForty) {
  for (const std::uint64_t prefetch : {0U, 1U, 4U}) {
    shardplan::Setup setup;
    setup.world_size = 8;
    setup.stage = 3;
    setup.prefetch = prefetch;
    setup.accumulation = 2;
    const StepPlan forty = make_step_plan(uniform_catalog(40, 1 << 20), setup);
    const StepPlan thousand = make_step_plan(uniform_catalog(1000, 1 << 20), setup);
    for (std::size_t kind = 0; kind < kPrograms; ++kind) {
      EXPECT_EQ(forty.programs[kind].segments.size(), thousand.programs[kind].segments.size());
    }
    EXPECT_EQ(forty.device.slots.size(), thousand.device.slots.size());
    EXPECT_EQ(forty.device.arrays.size(), thousand.device.arrays.size());
  }
}

}  // namespace
}  // namespace shardplan
