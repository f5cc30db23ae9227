// Units whose parameters or gradients are in a file: their slots, their pieces, and the operations that bring them in and out.
#include "planner/passage.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "planner/explain.h"
#include "planner/formats/parameter_count.h"
#include "planner/offload.h"
#include "planner/report.h"
#include "tests/planner/offloaded_setup.h"
#include "tests/support/catalogs.h"

namespace shardplan {
namespace {

using namespace test_support;  // NOLINT(google-build-using-namespace)

// Three slots, each of the largest unit that uses it, every array in whole pages; and what is in the file in as many pieces as
// it takes, at most 32 of an array.
TEST(Passage, UnitsPassThroughThreeSlotsOfTheirOwnSize) {
  for (const Catalog& catalog : known_catalogs()) {
    for (const char* placement : {"gradients=file", "gradients=file@0.3,parameters=file", "parameters=file@0.6"}) {
      shardplan::Setup setup = offloaded_setup(placement, 3, 8);
      setup.accumulation = 2;
      const StepPlan plan = make_step_plan(catalog, setup);
      Bytes slots_bytes;
      std::uint64_t blocks = 0;
      for (const MemoryClass memory_class : {MemoryClass::parameters, MemoryClass::gradients}) {
        const std::uint64_t units = units_in_file(plan, memory_class);
        const std::uint64_t slots = passing_slots(plan, memory_class);
        ASSERT_EQ(slots, std::min<std::uint64_t>(units, 3));
        std::vector<Bytes> most(slots);
        for (std::uint64_t unit = 0; unit < units; ++unit) {
          Bytes bytes;
          std::map<Bytes, Bytes> places;
          const auto& buffers = run_of_unit(plan.layout, unit).unit.buffers;
          for (std::size_t b = 0; b < buffers.size(); ++b) {
            for (const BufferRole role : {BufferRole::parameter, BufferRole::gradient, BufferRole::accumulator}) {
              const auto home = resident_place(plan, role, unit, b);
              if (!home || class_of(role) != memory_class) continue;
              EXPECT_EQ(home->tier, Tier::file);
              const ByteRange place = passing_place(plan, role, unit, b);
              EXPECT_EQ(place.bytes, home->range.bytes);
              EXPECT_EQ(place.offset.count() % 4096, 0U);
              if (place.bytes > 0_B) places[place.offset] = place.bytes;
              bytes += round_up(place.bytes, 4_KiB);
              std::uint64_t elements = 0;
              for (std::uint64_t piece = 0; elements < buffers[b].shard_elements; ++piece) {
                const Range range = piece_range(plan, buffers[b].shard_elements, piece);
                EXPECT_EQ(range.begin, elements);
                EXPECT_EQ(range.begin % 8192, 0U);
                EXPECT_LT(piece, 32U);
                elements = range.end;
                ++blocks;
              }
              EXPECT_EQ(elements, buffers[b].shard_elements);
            }
          }
          most[unit % slots] = std::max(most[unit % slots], bytes);
          Bytes end;
          for (const auto& [offset, length] : places) {
            EXPECT_GE(offset, end);
            end = offset + length;
          }
        }
        for (std::uint64_t slot = 0; slot < slots; ++slot) {
          EXPECT_EQ(passing_slot_bytes(plan, memory_class, slot), most[slot]);
          slots_bytes += most[slot];
        }
      }
      EXPECT_EQ(plan.blocks.blocks, blocks);
      EXPECT_EQ(plan.pinned.resident, kValuesBuffer + slots_bytes + 32 * Bytes{blocks});
    }
  }
}

// A parameter count is one flat buffer, which no model gathers whole: its figure has the classes and not the slots.
TEST(Passage, AParameterCountAloneHasNoSlots) {
  const Catalog catalog = catalog_from_parameters(7'000'000'000);
  const StepPlan plan = make_step_plan(catalog, offloaded_setup("gradients=file,parameters=file", 3, 8));
  const RankReport rank = report_shardplan(catalog, plan).ranks.front();
  EXPECT_LT(rank.host.total, 1_MiB);
  EXPECT_EQ(rank.file, plan.file.bytes);
  const std::vector<Explanation> lines = explain_shardplan(catalog, plan);
  const auto host =
      std::find_if(lines.begin(), lines.end(), [](const Explanation& line) { return line.name == "host: all of it"; });
  ASSERT_NE(host, lines.end());
  EXPECT_EQ(host->bytes, rank.host.total);
}

std::vector<Operation> operations_of(const StepPlan& plan, std::size_t program) {
  std::vector<Operation> operations;
  for_each_operation(plan.programs[program], [&](const Operation& operation) { operations.push_back(operation); });
  return operations;
}

// Between the file and pinned memory.
bool is_passage(const StepPlan& plan, std::size_t program, const Operation& operation) {
  const bool moves = operation.kind == OperationKind::fetch || operation.kind == OperationKind::evict;
  if (!moves || operation.subject == Subject::optimizer_states) return false;
  return operation.subject == Subject::gradient || program == static_cast<std::size_t>(ProgramKind::update) ||
         parameters_sharded(plan);
}

// The programs of the same plan on host memory, and around each use of a unit that is in the file its way in and out: also
// where a part of a run ends, and around ties.
void expect_passages(const StepPlan& plan, const StepPlan& host) {
  for (std::size_t program = 0; program < kPrograms; ++program) {
    std::vector<Operation> others;
    const std::vector<Operation> all = operations_of(plan, program);
    const auto has = [&](std::size_t i, OperationKind kind, Subject subject, std::uint64_t unit) {
      return i < all.size() && all[i].kind == kind && all[i].subject == subject && all[i].unit == unit;
    };
    for (std::size_t i = 0; i < all.size(); ++i) {
      const Operation& operation = all[i];
      if (!is_passage(plan, program, operation)) {
        others.push_back(operation);
      } else {
        const bool parameters = operation.subject == Subject::parameter;
        EXPECT_TRUE(in_file(plan, parameters ? MemoryClass::parameters : MemoryClass::gradients, operation.unit));
      }
      const bool gradient = in_file(plan, MemoryClass::gradients, operation.unit);
      const bool parameter = in_file(plan, MemoryClass::parameters, operation.unit);
      if (operation.kind == OperationKind::norm && gradient) {
        EXPECT_TRUE(has(i - 1, OperationKind::fetch, Subject::gradient, operation.unit));
      }
      if (operation.kind == OperationKind::update) {
        std::size_t fetches = 0;
        for (std::size_t k = i; k-- > 0 && all[k].kind == OperationKind::fetch; ++fetches)
          EXPECT_EQ(all[k].unit, operation.unit);
        const bool states =
            plan.setup.offload.optimizer.tier == Tier::file && operation.unit < plan.offloaded.optimizer;
        EXPECT_EQ(fetches, (gradient ? 1U : 0U) + (parameter ? 1U : 0U) + (states ? 1U : 0U));
        std::size_t next = i + (states ? 2 : 1);
        if (next < all.size() && all[next].kind == OperationKind::gather) ++next;
        EXPECT_EQ(has(next, OperationKind::evict, Subject::parameter, operation.unit), parameter);
      }
      if (operation.kind == OperationKind::gather && operation.subject == Subject::parameter &&
          parameters_sharded(plan)) {
        EXPECT_EQ(i > 0 && has(i - 1, OperationKind::fetch, Subject::parameter, operation.unit) &&
                      all[i - 1].step == operation.step,
                  parameter);
      }
      // The first and the last operation of a gradient in a micro-batch.
      const bool reduces = operation.kind == OperationKind::accumulate || operation.kind == OperationKind::reduce;
      if (reduces && gradient && plan.setup.accumulation > 1 && all[i - 1].subject != Subject::gradient) {
        ADD_FAILURE() << "no sums are fetched for unit " << operation.unit;
      }
      if (reduces && gradient) {
        std::size_t last = i;
        while (last + 1 < all.size() && all[last + 1].subject == Subject::gradient &&
               all[last].kind != OperationKind::evict)
          ++last;
        EXPECT_TRUE(has(last, OperationKind::evict, Subject::gradient, operation.unit));
        ASSERT_TRUE(all[last].waits_for[0]);
        EXPECT_EQ(all[last].waits_for[0]->unit, operation.unit);
      }
    }
    EXPECT_EQ(others.size(), operations_of(host, program).size());
    EXPECT_TRUE(others == operations_of(host, program));
  }
}

TEST(Passage, WhatIsInTheFileIsFetchedBeforeItsUseAndEvictedAfterIt) {
  for (const Catalog& catalog : known_catalogs()) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const std::uint64_t world : {1U, 8U}) {
        for (const char* placement :
             {"gradients=file", "parameters=file", "optimizer=file@0.3,gradients=file@0.4,parameters=file",
              "gradients=file@0.7,parameters=file@0.2", "optimizer=file,gradients=file@0.01,parameters=file@0.99"}) {
          const bool part = std::string(placement).find("parameters=file@") != std::string::npos;
          if (part && (stage < 3 || world == 1)) continue;
          for (const std::uint64_t accumulation : {1U, 3U}) {
            SCOPED_TRACE(fmt::format("stage {} world {} A {} {}", stage, world, accumulation, placement));
            shardplan::Setup setup = offloaded_setup(placement, stage, world);
            setup.accumulation = accumulation;
            setup.prefetch = accumulation;
            setup.replicate = stage == 2 && world == 8 ? 2 : 1;
            const StepPlan plan = make_step_plan(catalog, setup);
            for (OffloadedClass* placed : {&setup.offload.gradients, &setup.offload.parameters}) {
              if (placed->tier == Tier::file) placed->tier = Tier::pinned;
            }
            expect_passages(plan, make_step_plan(catalog, setup));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace shardplan
